"""What a search takes up of the runs and recipes that it goes on from: start points and scores."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from evomerge.assemble import Bench
from evomerge.errors import UserError
from evomerge.identity import identity
from evomerge.mergekit.reading import read_recipe
from evomerge.merging.plan import plan_merge
from evomerge.recipe import Recipe
from evomerge.scoring.documents import Split, split_documents
from evomerge.scoring.scorer import Kind
from evomerge.searching.attempt import Evaluate
from evomerge.searching.baselines import baselines, further_baselines
from evomerge.searching.equal_weights import weights_key
from evomerge.searching.known_scores import KnownScores, Reusing
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.space import NotInSpace
from evomerge.searching.starting import Start, fitted, ranked_trials
from evomerge.searching.study import (
    IDENTITY,
    enqueue_baselines,
    find_study,
    values_of_baselines,
)

log = logging.getLogger(__name__)

STARTS = "starts"
"""Study attribute: place of a run or recipe -> name -> the recipe that was tried first."""


Starts = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Place of a run or recipe -> name -> the recipe to be tried first, as a mapping."""


def plain_baselines(bench: Bench) -> dict[str, Recipe]:
    """Name -> recipe of the baselines that depend on no score and on no other search."""
    return baselines(bench.template, bench.space.methods) | bench.space.starts()


def read_starts(bench: Bench, study: optuna.Study | None, before: Path | None = None) -> Starts:
    """What `start_from` names; of a study that was begun, what it keeps, and what is new.

    before: the run that this one is to be a fork of, which may turn out to have nothing for it.
    UserError where a run or recipe is of other models, or its winners were chosen on documents
    that are held out here.
    """
    given = [(bench.loaded.folder / path).resolve() for path in bench.loaded.config.start_from]
    found = dict({} if study is None else study.user_attrs.get(STARTS, {}))
    for path in [*given, *([] if before is None else [before.resolve()])]:
        if str(path) in found:
            continue
        try:
            starts = _of_run(path, bench) if path.is_dir() else _of_file(path, bench)
        except UserError as error:
            if path in given:
                raise
            log.info("nothing of %s can be tried first: %s", path, error)
            continue
        for name, start in starts.items():
            log.info("%s: %s", name, "; ".join([*start.notes, _where(start.recipe, bench)]))
        found[str(path)] = {name: start.recipe.to_mapping() for name, start in starts.items()}
    return found


def take_up_starts(study: optuna.Study, starts: Starts) -> dict[str, Recipe]:
    """Keeps them in the study; name -> recipe, to be tried beside the baselines."""
    study.set_user_attr(STARTS, dict(starts))
    return {
        name: Recipe.from_mapping(mapping)
        for own in starts.values()
        for name, mapping in own.items()
    }


def known_scores(bench: Bench, study: optuna.Study) -> KnownScores:
    """The scores that are still valid of all runs that this one goes on from, where they are still
    there; the log says what is not valid, and why."""
    known = KnownScores()
    for place in study.user_attrs.get(STARTS, {}):
        folder = RunFolder(Path(place))
        if Path(place).is_file():
            continue
        if not folder.journal.exists():
            log.warning("%s is no longer there: its scores are computed again", place)
            continue
        before, now = _identity(folder), identity(bench)
        splits = _splits(bench, before, now)
        for reason in known.add(folder, now, bench.splits, splits):
            log.info("scores of %s: %s", place, reason)
    if known.found:
        count = len({key for key, _ in known.found})
        log.info("scores of %d recipes are known and need not be computed", count)
    return known


def reused(bench: Bench, evaluate: Evaluate, known: KnownScores) -> Evaluate:
    """Computes only what is not known."""

    def metric_of(task: str, kind: Kind) -> str | None:
        own = bench.goal.points.targets[task].metric
        return own if kind == "metric" else bench.scorer.smooth(task)

    if not known.found:
        return evaluate
    return Reusing(evaluate=evaluate, known=known, blocks=bench.blocks, metric_of=metric_of)


def enqueue_further_baselines(study: optuna.Study, bench: Bench) -> None:
    """Puts into the queue the baselines that follow from those before, once all of these ended."""
    values = values_of_baselines(study)
    if values is not None:
        enqueue_baselines(study, bench.space, further_baselines(bench.template, values))


def _of_run(run: Path, bench: Bench) -> dict[str, Start]:
    """The best trials of a run that are no baselines here, as many as there are finalists."""
    ranked = ranked_trials(run, "start_from")
    folder = RunFolder(run)
    before, now = _identity(folder), identity(bench)
    for task, split in _splits(bench, before, now).items():
        if both := set(split.search) & set(bench.splits[task].holdout):
            raise UserError(
                f"start_from: {run} chose its winners on {len(both)} documents of task {task!r} "
                "that are held out here, so that no verdict on them would be honest; expected its "
                f"`documents: {{holdout: {before['documents']['holdout']}, "
                f"seed: {before['documents']['seed']}}}` and limits"
            )
    starts: dict[str, Start] = {}
    plain = {weights_key(recipe) for recipe in plain_baselines(bench).values()}
    for record in ranked:
        if len(starts) == bench.loaded.config.finalists:
            break
        name = f"start {record.name.removeprefix('start ')} of {run.name}"
        start = fitted(record.recipe, bench.template, f"start_from: {run}")
        if start is None:
            log.info("%s: cannot be made of the sources of this search", name)
        elif weights_key(start.recipe) not in plain:
            starts[name] = start
    return starts


def _of_file(path: Path, bench: Bench) -> dict[str, Start]:
    """A recipe, or a merge YAML of mergekit."""
    where = f"start_from: {path}"
    start = fitted(read_recipe(path), bench.template, where)
    if start is None:
        raise UserError(f"{where}: cannot be made of the sources of this search")
    try:
        plan_merge(start.recipe, bench.models)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    name = path.parent.name if path.stem == "recipe" else path.stem
    return {f"start {name}": start}


def _where(recipe: Recipe, bench: Bench) -> str:
    try:
        bench.space.encode(recipe)
    except NotInSpace as error:
        return f"is tried, but is no start point of the sampler: {error}"
    return "is a start point of the sampler"


def _identity(folder: RunFolder) -> Mapping[str, Any]:
    study = find_study(folder.storage_of_run(None))
    found: Mapping[str, Any] = {} if study is None else study.user_attrs.get(IDENTITY, {})
    return found


def _splits(bench: Bench, before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Split]:
    """How an earlier run split the tasks whose documents are the same here."""

    def texts(task: str) -> Sequence[str]:
        return bench.scorer.documents(task)

    documents = before["documents"]
    same = [
        task
        for task in bench.splits
        if task in before["tasks"] and documents["tasks"][task] == now["documents"]["tasks"][task]
    ]
    return {
        task: split_documents(
            task=task,
            texts=texts(task),
            seed=documents["seed"],
            holdout_share=documents["holdout"],
            limit=before["tasks"][task].get("limit"),
        )
        for task in same
    }

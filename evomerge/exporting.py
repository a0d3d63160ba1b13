"""A recipe -> a checkpoint folder that any transformers user loads, with its model card."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.checkpoints.source import read_json
from evomerge.checkpoints.tokenizer import copy_tokenizer
from evomerge.checkpoints.writer import Spec, result_folder, write_weights
from evomerge.devices import choose_device
from evomerge.errors import UserError, did_you_mean
from evomerge.files import write_text
from evomerge.merging.calibration import calibrate, text_hash
from evomerge.merging.models import Models, check_hashes, open_models
from evomerge.merging.plan import merged_tensors, plan_merge
from evomerge.methods.compiled import choose_pass
from evomerge.model_card import SAMPLES, model_card
from evomerge.recipe import BASE, Recipe
from evomerge.searching.front import knee_of, pareto_front
from evomerge.searching.ranking import rank
from evomerge.searching.record import TrialRecord, read_trials
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.study import find_study, read_goal

log = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"


def merge(
    recipe: Recipe | Path | str,
    out: Path | str,
    *,
    force: bool = False,
    trust_remote_code: bool = False,
    device: str = "auto",
    beside: Mapping[str, str] | None = None,
    statistics: Path | None = None,
) -> Path:
    """Writes the recipe's checkpoint to the folder `out` and returns it.

    Safetensors, config.json, generation config, the tokenizer and chat template that the recipe's
    vocabulary says, a model card and recipe.yaml, written last. No more than a few tensors are in
    memory. The weights are those that a search with this recipe scores, bit by bit on one kind of
    device.
    device: where to merge (auto: the first GPU, else the CPU). beside: further text files, the
    card's README.md among them. statistics: the folder of a run, which may hold activations that
    the recipe needs. UserError if `out` exists (unless `force`), cannot be written, or
    the recipe does not fit its models.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.read(Path(recipe))
    models = open_models(recipe, trust_remote_code=trust_remote_code)
    check_hashes(models, recipe)
    jobs = plan_merge(recipe, models)
    specs = {job.slot.name: Spec(shape=job.slot.shape, dtype=job.slot.dtype) for job in jobs}
    place = choose_device(device)
    run, _ = choose_pass(place, sum(math.prod(spec.shape) for spec in specs.values()))
    recipe = pinned_recipe(recipe, models)
    calibrate(recipe, models, device=place, folder=statistics, trust_remote_code=trust_remote_code)
    out = Path(out)
    with result_folder(out, force=force) as folder:
        write_weights(folder, specs, merged_tensors(recipe, models, place, run))
        _write_configuration(folder, models, recipe)
        for name, text in {"README.md": model_card(recipe, out.name), **(beside or {})}.items():
            write_text(folder / name, text)
        recipe.write(folder / RECIPE_FILE)
    log.info("wrote %s", out)
    return out


def export(
    run: Path | str,
    out: Path | str,
    *,
    trial: int | None = None,
    knee: bool = False,
    force: bool = False,
    trust_remote_code: bool = False,
    device: str = "auto",
    storage: str | None = None,
) -> Path:
    """Writes the checkpoint of a run's winner, or of one of its trials, to the folder `out`.

    knee: of several objectives, the trial that lies farthest above the plane between the front's
    extremes; without it, a trial must be named then. storage: the URL of the study, where it is not
    in the run folder. UserError if there is no such run or trial, or the trial has no scores.
    """
    folder = RunFolder(Path(run))
    study = find_study(folder.storage_of_run(storage))
    if study is None:
        raise UserError(f"{run}: holds no study; expected the output folder of a search")
    records = read_trials(study)
    record = _chosen(records, study.user_attrs, trial, knee)
    card = model_card(
        record.recipe,
        Path(out).name,
        record=record,
        records=records,
        attributes=study.user_attrs,
    )
    scores = folder.scores("search", record.number)
    samples = {task: list(of_task.documents) for task, of_task in scores.items()}
    return merge(
        record.recipe,
        out,
        force=force,
        trust_remote_code=trust_remote_code,
        device=device,
        beside={"README.md": card, SAMPLES: json.dumps(samples)},
        statistics=folder.statistics,
    )


def recipe_of_run(
    run: Path | str, trial: int | None = None, storage: str | None = None, *, knee: bool = False
) -> Recipe:
    """The recipe of a run's winner, or of one of its trials; UserError as for `export`."""
    study = find_study(RunFolder(Path(run)).storage_of_run(storage))
    if study is None:
        raise UserError(f"{run}: holds no study; expected the output folder of a search")
    records = read_trials(study)
    return _chosen(records, study.user_attrs, trial, knee).recipe


def _chosen(
    records: Sequence[TrialRecord], attributes: Mapping[str, Any], trial: int | None, knee: bool
) -> TrialRecord:
    """The trial that was asked for, or the winner; of several objectives there is none."""
    if trial is not None and knee:
        raise UserError("a trial and the knee were asked for; expected one of them")
    if trial is not None:
        return _trial(records, trial)
    goal = read_goal(attributes)
    if knee and not goal.several:
        raise UserError("this run has one objective, so its front has no knee; leave --knee out")
    winner = _winner(records, attributes)
    if not goal.several:
        return winner
    front, values = pareto_front(records, goal)
    if knee:
        return knee_of(front, values)
    lines = [f"  --trial {r.number:<5} {goal.text(0.0, r.metrics)} ({r.name})" for r in front]
    raise UserError(
        f"this run has {len(goal.parts)} objectives and no single winner; choose one of its front "
        "with --trial, or its knee with --knee:\n" + "\n".join(lines)
    )


def _winner(records: Sequence[TrialRecord], attributes: Mapping[str, Any]) -> TrialRecord:
    goal = read_goal(attributes)
    ranked = rank(records, goal)
    if not ranked and any(record.value is not None for record in records):
        limits = "; ".join(constraint.sentence() for constraint in goal.constraints)
        raise UserError(f"no trial keeps the constraints ({limits}); choose one with --trial")
    if not ranked:
        raise UserError("the run has no scored trial yet; let it finish one")
    return ranked[0]


def _trial(records: Sequence[TrialRecord], number: int) -> TrialRecord:
    known = {record.number: record for record in records if record.value is not None}
    if number not in known:
        raise UserError(
            f"trial {number} has no scores; trials that have: "
            f"{did_you_mean(str(number), [str(n) for n in known])}"
        )
    return known[number]


def _write_configuration(folder: Path, models: Models, recipe: Recipe) -> None:
    """config.json with the recipe's dtype, depth and vocabulary; all else as the base has it."""
    base = models.base.folder
    config: Mapping[str, Any] = read_json(base / "config.json")
    config = {k: v for k, v in config.items() if k not in ("torch_dtype", "_name_or_path")}
    if (stack := recipe.layers_of_stack()) is not None:
        config = models.stacks.changes(stack, config)
    config = _with_vocabulary(config, models) | {"dtype": recipe.dtype}
    write_text(folder / "config.json", json.dumps(config, indent=2))
    generation = base / "generation_config.json"
    if generation.exists():
        settings = read_json(generation)
        moved = _with_vocabulary(settings, models)
        text = json.dumps(moved, indent=2) if moved != settings else generation.read_text("utf-8")
        write_text(folder / generation.name, text)
    if models.vocabularies is None:
        copy_tokenizer(base, folder)
    else:
        models.vocabularies.save(folder)


def _with_vocabulary(settings: Mapping[str, Any], models: Models) -> dict[str, Any]:
    """The base's settings with the size of the merged vocabulary and the numbers of its tokens."""
    changed = dict(settings)
    if "vocab_size" in settings and models.layout.vocabulary:
        changed["vocab_size"] = models.layout.slots[models.layout.vocabulary[0]].shape[0]
    if models.vocabularies is not None:
        changed |= models.vocabularies.moved_ids(settings)
    if isinstance(inner := settings.get("text_config"), dict):
        changed["text_config"] = _with_vocabulary(inner, models)
    return changed


def pinned_recipe(recipe: Recipe, models: Models) -> Recipe:
    """The recipe with every model's and text's hash and, where it is local, absolute path."""

    def pinned(name: str) -> Any:
        model, checkpoint = recipe.model(name), models.checkpoints[name]
        local = Path(model.path).exists()
        return replace(
            model,
            path=str(Path(model.path).resolve()) if local else model.path,
            sha256=model.sha256 or checkpoint.sha256(),
        )

    calibration = recipe.calibration
    if calibration is not None:
        calibration = replace(
            calibration,
            file=str(Path(calibration.file).resolve()),
            sha256=calibration.sha256 or text_hash(calibration),
        )
    return replace(
        recipe,
        base=pinned(BASE),
        sources={name: pinned(name) for name in recipe.sources},
        calibration=calibration,
    )

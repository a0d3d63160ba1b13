"""What evomerge does, as Python functions; the command line only parses, calls these and prints."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import optuna

from evomerge.assemble import Bench, asked, dtype_of, evaluator, identity, prepare
from evomerge.checking import Check as Check
from evomerge.checking import budget_of, loaded_config, sampler_choice
from evomerge.checking import check as check
from evomerge.checkpoints.hashes import HashCache
from evomerge.config import BudgetConfig, LoadedConfig
from evomerge.ending import Outcome, until_end
from evomerge.environment import environment
from evomerge.files import write_text
from evomerge.going_on import (
    Starts,
    enqueue_further_baselines,
    known_scores,
    plain_baselines,
    read_starts,
    reused,
    take_up_starts,
)
from evomerge.merging.norms import task_vector_norms
from evomerge.recipe import BASE, Model, Recipe, Rule
from evomerge.scorers import published
from evomerge.scoring.scorecard import Scorecard
from evomerge.searching.even_norms import enqueue_starts
from evomerge.searching.finalists import decide, score_finalists, score_warnings
from evomerge.searching.front_verdict import decide_front
from evomerge.searching.guidance import Guide
from evomerge.searching.holdout_limits import check_limits
from evomerge.searching.interrupt import on_interrupt
from evomerge.searching.kept_questions import keep_questions
from evomerge.searching.loop import Loop
from evomerge.searching.plateau import PLATEAU, PlateauWatch
from evomerge.searching.progress import Progress, outcome_text
from evomerge.searching.record import TrialRecord, base_of, read_trials
from evomerge.searching.references import REFERENCES, with_references
from evomerge.searching.run_folder import RunFolder, Side
from evomerge.searching.samplers import (
    SAMPLERS,
    SpaceSampler,
)
from evomerge.searching.space import SearchSpace
from evomerge.searching.study import (
    BATCH_TOKENS,
    HISTORY,
    IDENTITY,
    PUBLISHED,
    TASKS,
    carry_over,
    differences,
    enqueue_baselines,
    find_study,
    finished,
    note,
    open_study,
    published_sentence,
    take_up_interrupted,
    write_goal,
)

log = logging.getLogger(__name__)

OnProgress = Callable[[Progress, TrialRecord | None], None]
_COMPARABLE = (
    "models",
    "vocabulary",
    "tasks",
    "documents",
    "dtype",
    "batch_tokens",
    "code",
    "generation",
    "objective",
    "normalise",
    "objectives",
    "constraints",
)


def search(
    config: LoadedConfig | Path | str,
    *,
    budget: BudgetConfig | None = None,
    fork: bool = False,
    on_progress: OnProgress = lambda progress, record: None,
) -> Outcome:
    """Starts a search, or goes on with it, until its budget is spent; then gives the verdict.

    budget: instead of the file's. fork: where the run in the output folder was begun with another
    configuration, start a new run beside it that takes over what is still valid. on_progress is
    called after every trial. Raises UserError for every mistake that can be found before the
    first trial.
    """
    loaded = loaded_config(config)
    limits = budget or loaded.config.budget
    notify = loaded.config.notify
    folder = RunFolder(loaded.output())
    with _writing(folder):
        hashes = HashCache(folder.path / "hashes.json")
        bench = prepare(loaded, hashes)
        hashes.save()
        storage = folder.storage(loaded.config.storage)
        old = find_study(storage)
        if not (fork and old and differences(old.user_attrs.get(IDENTITY), identity(bench))):
            starts = read_starts(bench, old)
            study = open_study(storage, identity(bench), bench.goal.parts)
            url = loaded.config.storage
            run = partial(_run, bench, study, folder, url, limits, on_progress, starts)
            return until_end(study, folder, notify, run)
    beside = _free_name(folder.path)
    with _writing(RunFolder(beside)) as new_folder:
        log.info("fork of %s: a new run in %s", folder.path, beside)
        known, given = old.user_attrs[IDENTITY], identity(bench)
        comparable = all(known.get(key) == given.get(key) for key in _COMPARABLE)
        starts = read_starts(bench, None, before=None if comparable else folder.path)
        new = open_study(new_folder.storage(None), given, bench.goal.parts)
        if comparable:
            count = carry_over(old, folder, new, new_folder, bench.space)
            log.info("took over the scores of %d trials", count)
        run = partial(_run, bench, new, new_folder, None, limits, on_progress, starts)
        return until_end(new, new_folder, notify, run)


def score(
    what: Recipe | Path | str,
    config: LoadedConfig | Path | str,
    *,
    side: Side = "search",
) -> Scorecard:
    """Scores a recipe (or recipe.yaml), or a model folder, on a configuration's tasks.

    side: which documents of the split. The scores are those that a trial of the same weights
    would record.
    """
    loaded = loaded_config(config)
    if not isinstance(what, Recipe) and (Path(what).is_dir() or Path(what).suffix == ".gguf"):
        what = _unchanged(Path(what), loaded)
    recipe = what if isinstance(what, Recipe) else Recipe.read(Path(what))
    config_of_recipe = dataclasses.replace(
        loaded.config,
        base=recipe.base,
        sources=recipe.sources,
        dtype=recipe.dtype,
        vocabulary=recipe.vocabulary,
        calibration=recipe.calibration or loaded.config.calibration,
    )
    bench = prepare(
        dataclasses.replace(loaded, config=config_of_recipe),
        HashCache(loaded.output() / "hashes.json"),
    )
    return evaluator(bench)(recipe, side)[0]


def _unchanged(folder: Path, loaded: LoadedConfig) -> Recipe:
    """The recipe of a folder's own weights: a base that passes through."""
    rule = Rule(method="passthrough", sources=(BASE,))
    model = Model(path=str(folder.resolve()))
    dtype = loaded.config.dtype or dtype_of(
        model, trust_remote_code=loaded.config.trust_remote_code
    )
    return Recipe(base=model, sources={}, rules=(rule,), dtype=dtype)


@contextmanager
def _writing(folder: RunFolder) -> Iterator[RunFolder]:
    """The run folder, locked, with the log file in it."""
    folder.open_for_writing()
    handler = logging.FileHandler(folder.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("evomerge")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield folder
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
        folder.close()


def _run(
    bench: Bench,
    study: optuna.Study,
    folder: RunFolder,
    storage: str | None,
    limits: BudgetConfig,
    on_progress: OnProgress,
    starts: Starts,
) -> Outcome:
    """Trials until the budget is spent, then the holdout and the verdict."""
    config = bench.loaded.config
    budget = budget_of(limits)
    if not folder.config.exists():
        write_text(folder.config, bench.loaded.file.read_text(encoding="utf-8"))
    back = take_up_interrupted(study)
    if back:
        log.info("%d interrupted trial(s) are taken up again", back)
    plain = plain_baselines(bench) | take_up_starts(study, starts)
    enqueue_baselines(study, bench.space, plain)
    if isinstance(bench.space, SearchSpace):
        names = tuple(bench.template.sources)
        enqueue_starts(
            study,
            bench.space,
            lambda cells: task_vector_norms(bench.models, cells, names, bench.device),
        )
    scores = known_scores(bench, study)
    done = len(finished(study))
    sampler, reason = sampler_choice(bench, budget)
    distributions = bench.space.distributions()
    study.sampler = SpaceSampler(SAMPLERS[sampler](config.seed), distributions)
    study.set_user_attr(TASKS, asked(bench))
    write_goal(study, bench.goal)
    public = published(bench.scorer)
    if public and PUBLISHED not in study.user_attrs:
        log.info("%s", published_sentence(public))
    study.set_user_attr(PUBLISHED, public)
    off = bench.guiding()
    guiding = "along the gradient" if off is None else f"off: {off}"
    guide = None
    if off is None:
        guide = Guide(
            study=study,
            space=bench.space,
            goal=bench.goal,
            folder=folder,
            documents={t: bench.documents("search")[t] for t in bench.goal.points.shares()},
        )
    start = {
        **environment(),
        "sampler": sampler,
        "reason": reason,
        "budget": budget.facts(),
        "trials before": done,
        "memory": bench.memory.sentence(),
        "merging": bench.pass_reason,
        "objective": f"{bench.goal.kind}: {bench.goal.reason}",
        "normalise": f"{bench.goal.normalise}: {bench.goal.normalise_reason}",
        "constraints": [constraint.sentence() for constraint in bench.goal.constraints],
        "early stopping": bench.stopping(),
        "guidance": guiding,
    }
    study.set_user_attr(HISTORY, [*study.user_attrs.get(HISTORY, []), start])
    if without := keep_questions(folder, bench.scorer, bench.splits):
        note(study, "without questions", without)
    log.info("%s", bench.memory.sentence())
    log.info("objective %s: %s", bench.goal.kind, bench.goal.reason)
    log.info("normalise %s: %s", bench.goal.normalise, bench.goal.normalise_reason)
    for constraint in bench.goal.constraints:
        log.info("constraint: %s", constraint.sentence())
    log.info("early stopping: %s", bench.stopping())
    log.info("guidance: %s", guiding)
    log.info("%d parameters, sampler %s: %s", len(distributions), sampler, reason)
    if done:
        log.info("goes on after %d finished trials", done)
    made = evaluator(bench, folder.statistics)
    evaluate = reused(bench, made, scores)
    _keep_budget(bench, study)
    goal = with_references(bench.goal, study.user_attrs.get(REFERENCES))
    progress = Progress(budget=budget, goal=goal, devices=bench.devices())
    known = read_trials(study)
    for record in known:
        progress.add(record, earlier=True)
    base = base_of(known)
    watch = PlateauWatch(folder, goal, known, study.user_attrs.get(PLATEAU))
    progress.plateau = watch.plateau

    def on_trial(record: TrialRecord) -> None:
        nonlocal base
        base = base or base_of([record])
        progress.goal = loop.goal
        progress.add(record)
        watch.goal = loop.goal
        if watch.add(record):
            _tell_plateau(study, watch)
        progress.plateau = watch.plateau
        log.info("%s (number %d): %s", record.name, record.number, outcome_text(record, loop.goal))
        if doubts := score_warnings(record, base, {}):
            log.warning("%s: its score is in doubt: %s", record.name, "; ".join(doubts))
        if record.remarks:
            # Where memory ran out, the next start begins with what was enough.
            study.set_user_attr(BATCH_TOKENS, bench.budget.tokens)
        if record.baseline is not None:
            enqueue_further_baselines(study, bench)
        on_progress(progress, record)

    def on_refusal(reason: str) -> None:
        log.warning("early stopping is off: %s", reason)
        note(study, "early stopping is off", reason)

    loop = Loop(
        study=study,
        space=bench.space,
        goal=goal,
        sources=tuple(bench.template.sources),
        constrained={c.task: bench.documents("search")[c.task] for c in goal.constraints},
        racing=bench.racing(),
        guide=guide,
        differentiate=made.gradient,
        on_refusal=on_refusal,
        folder=folder,
        evaluate=evaluate,
        budget=budget,
        on_trial=on_trial,
        enough=lambda: config.stop_on_plateau and watch.plateau is not None,
    )
    enqueue_further_baselines(study, bench)
    on_progress(progress, None)
    with on_interrupt(loop.stop) as interruption:
        loop.run()
        score_finalists(
            study,
            folder,
            loop.goal,
            config.finalist_count(),
            evaluate,
            stop_asked=lambda: loop.stop_asked,
        )
    study.set_user_attr(PLATEAU, watch.to_json())  # by now of more trials
    if loop.stop_asked:
        log.warning("stopped; the same command goes on")
        return Outcome(
            folder=folder.path,
            verdict=None,
            stopped=True,
            stopped_by=interruption.by,
            storage=storage,
        )
    if not loop.goal.settled:
        log.warning("the budget ended before base and sources were scored: no trial has a value")
    if loop.goal.several:
        front = decide_front(study, folder, loop.goal, config.seed)
        return Outcome(
            folder=folder.path, verdict=None, front=front, stopped=False, storage=storage
        )
    verdict = decide(study, folder, loop.goal, config.seed)
    if verdict is not None:
        check_limits(study, folder, loop.goal, [verdict.winner], config.seed)
    return Outcome(folder=folder.path, verdict=verdict, stopped=False, storage=storage)


def _tell_plateau(study: optuna.Study, watch: PlateauWatch) -> None:
    """Says, and keeps, that the search came onto a plateau, or left one."""
    study.set_user_attr(PLATEAU, watch.to_json())
    left = "the plateau is left: candidates differ by more than noise again"
    log.info("%s", left if watch.plateau is None else watch.plateau.sentence())


def _keep_budget(bench: Bench, study: optuna.Study) -> None:
    """Goes on with the batches that the study began with, found anew or not."""
    known = study.user_attrs.get(BATCH_TOKENS)
    if known is None:
        study.set_user_attr(BATCH_TOKENS, bench.budget.tokens)
    else:
        bench.budget.set(known)
    log.info("%d tokens in a forward pass", bench.budget.tokens)


def _free_name(path: Path) -> Path:
    number = 2
    while path.with_name(f"{path.name}-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}-{number}")

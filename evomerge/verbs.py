"""What evomerge does, as Python functions; the command line only parses, calls these and prints."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import optuna
import torch
from optuna.distributions import CategoricalDistribution

from evomerge.assemble import Bench, asked, dtype_of, evaluator, identity, prepare
from evomerge.checkpoints.hashes import HashCache
from evomerge.config import BudgetConfig, LoadedConfig, load_config
from evomerge.environment import environment
from evomerge.errors import UserError
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
from evomerge.merging.throughput import Throughput, measure
from evomerge.methods import METHODS
from evomerge.recipe import BASE, Model, Recipe, Rule
from evomerge.scorers import published
from evomerge.scoring.scorecard import Scorecard
from evomerge.searching.baselines import SCALES, baselines
from evomerge.searching.even_norms import enqueue_starts
from evomerge.searching.finalists import decide, score_finalists, score_warnings
from evomerge.searching.front_verdict import FrontVerdict, decide_front
from evomerge.searching.guidance import Guide
from evomerge.searching.holdout_limits import check_limits
from evomerge.searching.interrupt import on_interrupt
from evomerge.searching.intervals import Scored
from evomerge.searching.kept_questions import keep_questions
from evomerge.searching.loop import Budget, Loop
from evomerge.searching.plateau import PLATEAU, PlateauWatch
from evomerge.searching.power import Power, deviations, power
from evomerge.searching.progress import Progress, outcome_text
from evomerge.searching.record import TrialRecord, base_of, read_trials
from evomerge.searching.references import REFERENCES, with_references
from evomerge.searching.run_folder import RunFolder, Side
from evomerge.searching.samplers import (
    NO_CATEGORIES,
    ONE_OBJECTIVE,
    SAMPLERS,
    SpaceSampler,
    choose_sampler,
)
from evomerge.searching.space import SearchSpace
from evomerge.searching.stacks import StackSpace
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
from evomerge.searching.verdict import Verdict

log = logging.getLogger(__name__)

_PROBE_DOCUMENTS = 16  # per task: enough for a forecast, seconds even for large models
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call of `search` ended."""

    folder: Path
    verdict: Verdict | None
    """None where the search was stopped before its budget was spent, or has several objectives."""
    front: FrontVerdict | None = None
    """What takes its place with several objectives."""
    stopped: bool
    storage: str | None
    """URL of the study, where it is not in the folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What `check` found out."""

    bench: Bench
    parameters: int
    sampler: tuple[str, str]
    """(name, reason)."""
    seconds_per_trial: float | None
    """Extrapolated from a probe; None without one."""
    seconds_of_merge: float | None
    """To make the probe's candidate, by task arithmetic; None without a probe."""
    throughput: tuple[Throughput, ...]
    """Of each method of the space; none without a probe."""
    budget: Budget
    base: Scorecard | None
    """Of the probe's few documents; None without a probe."""
    published: Mapping[str, str]
    """Task -> the public test set that its documents are from, in words."""
    power: Power | None
    """Which gains the documents show; None where nothing is known of their noise."""

    def seconds_per_candidate(self) -> float | None:
        """To make a candidate of the whole model with the slowest method; None without a probe."""
        memory = self.bench.memory
        size = memory.model_bytes + memory.operand_bytes
        return max((size / each.bytes_per_second for each in self.throughput), default=None)

    def forecast(self) -> int | None:
        """Trials scored in full that the budget allows; None where that is not known."""
        trials = self.budget.full_trials(_trial_documents(self.bench))
        limits = [] if trials is None else [trials]
        if self.budget.deadline is not None and self.seconds_per_trial:
            left = (self.budget.deadline - datetime.now()).total_seconds()
            limits.append(int(left / self.seconds_per_trial))
        return min(limits, default=None)


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
    loaded = _loaded(config)
    limits = budget or loaded.config.budget
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
            return _run(bench, study, folder, loaded.config.storage, limits, on_progress, starts)
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
        return _run(bench, new, new_folder, None, limits, on_progress, starts)


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
    loaded = _loaded(config)
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


def check(config: LoadedConfig | Path | str, *, probe: bool = True) -> Check:
    """Everything that can be known before a search; nothing is written.

    probe: also scores the base on a few documents, to tell how its answers end, and makes and
    scores a candidate on them, to forecast the number of trials.
    """
    loaded = _loaded(config)
    bench = prepare(loaded, HashCache(loaded.output() / "hashes.json"))
    distributions = bench.space.distributions()
    budget = _budget(loaded.config.budget)
    base, plain, merging, scoring = _probe(bench) if probe else (None, None, None, None)
    return Check(
        bench=bench,
        parameters=len(distributions),
        sampler=_sampler_choice(bench, budget),
        seconds_per_trial=None if merging is None or scoring is None else merging + scoring,
        seconds_of_merge=merging,
        throughput=_throughput(bench) if probe else (),
        budget=budget,
        base=base,
        published=published(bench.scorer),
        power=_power(bench, None if base is None or plain is None else (base, plain)),
    )


def _loaded(config: LoadedConfig | Path | str) -> LoadedConfig:
    return config if isinstance(config, LoadedConfig) else load_config(config)


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
    budget = _budget(limits)
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
    sampler, reason = _sampler_choice(bench, budget)
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
    progress = Progress(budget=budget, goal=goal)
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
    with on_interrupt(loop.stop):
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
        return Outcome(folder=folder.path, verdict=None, stopped=True, storage=storage)
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


def _budget(config: BudgetConfig) -> Budget:
    return Budget(
        trials=config.trial_limit(),
        documents=config.documents,
        deadline=config.deadline(datetime.now()),
    )


def _trial_documents(bench: Bench) -> int:
    """Documents of a trial that is scored in full, each kind counted."""
    return len(bench.goal.trial_kinds) * sum(map(len, bench.documents("search").values()))


def _sampler_choice(bench: Bench, budget: Budget) -> tuple[str, str]:
    """(name, reason); UserError for a sampler that cannot propose this space."""
    name = bench.loaded.config.sampler
    distributions = bench.space.distributions()
    if name == "auto":
        if isinstance(bench.space, StackSpace) and not bench.goal.several:
            return "tpe", "stacks change at thresholds, which small steps seldom cross"
        trials = budget.full_trials(_trial_documents(bench))
        return choose_sampler(distributions, trials, max(1, len(bench.goal.parts)))
    categories = [k for k, d in distributions.items() if isinstance(d, CategoricalDistribution)]
    if name in NO_CATEGORIES and categories:
        raise UserError(
            f"{bench.loaded.file}: sampler: {name} cannot propose categories, and the space has "
            f"{', '.join(categories[:3])}; use trust_region, catcma or tpe, or one method"
        )
    if name in ONE_OBJECTIVE and bench.goal.several:
        others = ", ".join(known for known in SAMPLERS if known not in ONE_OBJECTIVE)
        raise UserError(
            f"{bench.loaded.file}: sampler: {name} climbs a single objective, and there are "
            f"{len(bench.goal.parts)}; use auto, or one of {others}"
        )
    return name, "as configured"


def _throughput(bench: Bench) -> tuple[Throughput, ...]:
    dtype, count = getattr(torch, bench.template.dtype), len(bench.template.sources)
    return tuple(
        measure(method, count, dtype, bench.device, bench.run)
        for method in bench.space.methods
        if METHODS[method].matrix is None and METHODS[method].solve is None
    )


def _probe(bench: Bench) -> tuple[Scorecard, Scorecard, float, float]:
    """The scores of the base and of a plain merge on a few documents, then the seconds to make one
    candidate, and to score it on the search documents, extrapolated from these few. What comes
    first pays for first reads and, of every method, for compiling."""
    few = {task: split.search[:_PROBE_DOCUMENTS] for task, split in bench.splits.items()}
    plain = baselines(bench.template)
    first, second = (plain[f"task_arithmetic {scale:g}"] for scale in SCALES[:2])
    evaluate = evaluator(bench)
    base, _ = evaluate(plain[BASE], few)
    merged, _ = evaluate(first, few)
    _, seconds = evaluate(second, few, kinds=bench.goal.trial_kinds)
    share = sum(map(len, few.values())) / sum(len(s.search) for s in bench.splits.values())
    return base, merged, seconds["merge"], (seconds["model"] + seconds["metric"]) / share


def _power(bench: Bench, cards: tuple[Scorecard, Scorecard] | None) -> Power | None:
    """What the documents can show, from the noise between two candidates, or from a bound of it."""
    objective = bench.goal.points
    pair = None
    if cards is not None:
        first, second = (
            Scored(metrics=objective.metrics(card), documents=card.per_document) for card in cards
        )
        pair = first, second
    noise = deviations(objective, pair)
    if noise is None:
        return None
    return power(
        noise,
        objective.shares(),
        {task: len(split.search) for task, split in bench.splits.items()},
        {task: len(split.holdout) for task, split in bench.splits.items()},
        bench.loaded.config.finalist_count(),
        probed=pair is not None,
    )


def _free_name(path: Path) -> Path:
    number = 2
    while path.with_name(f"{path.name}-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}-{number}")

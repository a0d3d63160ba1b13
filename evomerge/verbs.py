"""What evomerge does, as Python functions; the command line only parses, calls these and prints."""

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import optuna

from evomerge.assemble import Bench, evaluator, prepare
from evomerge.beginning import begin
from evomerge.checking import Check as Check
from evomerge.checking import budget_of, loaded_config
from evomerge.checking import check as check
from evomerge.checkpoints.hashes import HashCache
from evomerge.config import BudgetConfig, LoadedConfig
from evomerge.devices import give_back_memory
from evomerge.ending import Outcome, until_end
from evomerge.errors import UserError
from evomerge.going_on import Starts, read_starts
from evomerge.identity import identity
from evomerge.recipe import BASE, Model, Recipe, Rule
from evomerge.run_log import logging_to
from evomerge.scoring.scorecard import Scorecard
from evomerge.searching.interrupt import on_interrupt
from evomerge.searching.run_folder import RunFolder, Side
from evomerge.searching.study import (
    IDENTITY,
    carry_over,
    differences,
    find_study,
    open_study,
)
from evomerge.session import Follower, OnProgress, Session, session
from evomerge.template import dtype_of
from evomerge.workers.joining import Here as Here
from evomerge.workers.joining import Joined as Joined
from evomerge.workers.joining import work as work
from evomerge.workers.local import StartHere, devices_of_workers
from evomerge.workers.on_ray import StartOnRay, connect
from evomerge.workers.supervisor import Start, Supervisor
from evomerge.working import conclude, make_loop, stopped

log = logging.getLogger(__name__)

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
    workers: int | None = 1,
    ray: str | None = None,
    gpus_per_worker: float = 1.0,
    on_progress: OnProgress = lambda progress, record: None,
) -> Outcome:
    """Starts a search, or goes on with it, until its budget is spent; then gives the verdict.

    budget: instead of the file's. fork: where the run in the output folder was begun with another
    configuration, start a new run beside it that takes over what is still valid. workers: processes
    that make and score candidates; 1: this one; None: one for each GPU. ray: address of a Ray
    cluster on which they run, with gpus_per_worker GPUs each (0: none). on_progress is called after
    every trial. Raises UserError for every mistake that can be found before the first trial.
    """
    loaded = loaded_config(config)
    start = _Start(
        limits=budget or loaded.config.budget,
        on_progress=on_progress,
        devices=() if ray else devices_of_workers(loaded.config.device, workers),
        ray=None if ray is None else (connect(ray, workers, gpus_per_worker), gpus_per_worker),
        alone=ray is None and workers == 1,
    )
    folder = RunFolder(loaded.output())
    with _writing(folder):
        hashes = HashCache(folder.path / "hashes.json")
        bench = prepare(loaded, hashes, workers=max(1, len(start.devices)))
        hashes.save()
        storage = folder.storage(loaded.config.storage)
        old = find_study(storage)
        if not (fork and old and differences(old.user_attrs.get(IDENTITY), identity(bench))):
            starts = read_starts(bench, old)
            study = open_study(storage, identity(bench), bench.goal.parts)
            url = loaded.config.storage
            run = partial(_run, bench, study, folder, url, start, starts)
            return until_end(study, folder, loaded.config.notify, run)
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
        run = partial(_run, bench, new, new_folder, None, start, starts)
        return until_end(new, new_folder, loaded.config.notify, run)


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
    """The run folder, led by this process, with the log file in it."""
    folder.open_for_writing()
    with logging_to(folder):
        try:
            yield folder
        finally:
            folder.close()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """How a search was asked to start."""

    limits: BudgetConfig
    on_progress: OnProgress
    devices: tuple[str, ...]
    """Of each worker on this machine."""
    ray: tuple[int, float] | None
    """(workers, GPUs of each) on a Ray cluster."""
    alone: bool
    """Whether this process is to be the only worker, whatever a trial's time limit."""


def _run(
    bench: Bench,
    study: optuna.Study,
    folder: RunFolder,
    storage: str | None,
    start: _Start,
    starts: Starts,
) -> Outcome:
    """Trials until the budget is spent, then the holdout and the verdict."""
    with session(bench, study, folder, budget_of(start.limits), storage) as own:
        if not own.presence.leads():
            raise UserError(
                "other workers have begun this run and lead it; join them with `evomerge worker`"
            )
        count = len(start.devices) if start.ray is None else start.ray[0]
        begin(own, starts, count)
        # With a time limit, a worker that hangs has to be killed.
        limited = bench.loaded.config.trial_minutes is not None
        if len(start.devices) == 1 and (start.alone or not limited):
            return _alone(own, start.on_progress)
        give_back_memory()
        starting: Start
        if start.ray is None:
            starting = StartHere(folder.path, storage, start.devices)
        else:
            starting = StartOnRay(storage or str(folder.path.resolve()), start.ray[1])
        follower = Follower(own, start.on_progress)
        loop = make_loop(own, follower, scores=False)
        supervisor = Supervisor(own, loop, starting, count)
        follower.progress.workers = supervisor.words
        follower.progress.processes = supervisor.processes
        with on_interrupt(supervisor.stop) as interruption:
            supervisor.run()
            if loop.stop_asked:
                return stopped(own, interruption.by)
            outcome = conclude(own, loop, follower.keep_plateau)
        return dataclasses.replace(outcome, stopped_by=interruption.by)


def _alone(own: Session, on_progress: OnProgress) -> Outcome:
    """This process is the only worker of its machine."""
    loop = make_loop(own, lambda record: follower(record))
    follower = Follower(own, on_progress, own.bench.devices())
    with on_interrupt(loop.stop) as interruption:
        loop.run()
        outcome = conclude(own, loop, follower.keep_plateau)
    return dataclasses.replace(outcome, stopped_by=interruption.by)


def _free_name(path: Path) -> Path:
    number = 2
    while path.with_name(f"{path.name}-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}-{number}")

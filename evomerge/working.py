"""A process's work in a run: its live model, its loop, and the end of the run if it leads."""

import logging
from collections.abc import Callable
from typing import Any

import optuna

from evomerge.assemble import Bench, evaluator
from evomerge.checking import sampler_choice
from evomerge.ending import Outcome
from evomerge.going_on import enqueue_further_baselines, known_scores, reused
from evomerge.searching.attempt import Attempt, Evaluate
from evomerge.searching.finalists import decide, score_finalists
from evomerge.searching.front_verdict import decide_front
from evomerge.searching.guidance import Guide
from evomerge.searching.holdout_limits import check_limits
from evomerge.searching.loop import Loop
from evomerge.searching.presence import Presence
from evomerge.searching.record import TrialRecord, read_trials
from evomerge.searching.recovery import MOST_DEATHS
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.samplers import SAMPLERS, SpaceSampler
from evomerge.searching.study import BATCH_TOKENS, CLAIMED, note
from evomerge.session import Session, on_plateau

log = logging.getLogger(__name__)


def make_loop(
    session: Session, on_trial: Callable[[TrialRecord], None], *, scores: bool = True
) -> Loop:
    """The process's loop. scores: whether it makes and scores candidates; else it may only look
    after those that do, and loads the live model where it has to score finalists."""
    bench, study = session.bench, session.study
    sampler, _ = sampler_choice(bench, session.budget)
    distributions = bench.space.distributions()
    study.sampler = SpaceSampler(SAMPLERS[sampler](bench.loaded.config.seed), distributions)
    goal = session.goal()
    made = evaluator(bench, session.folder.statistics) if scores else None
    if made is not None:
        log.info("memory: %s", bench.memory.sentence())
        _keep_budget(bench, session)
    evaluate: Evaluate = Lazily(session) if made is None else made

    def on_refusal(reason: str) -> None:
        log.warning("early stopping is off: %s", reason)
        note(study, "early stopping is off", reason)

    def tell(record: TrialRecord) -> None:
        if record.remarks and bench.budget.tokens < study.user_attrs[BATCH_TOKENS]:
            # Where memory ran out, the next start begins with what was enough.
            study.set_user_attr(BATCH_TOKENS, bench.budget.tokens)
        on_trial(record)

    minutes = bench.loaded.config.trial_minutes
    attempt = Attempt(
        study=study,
        space=bench.space,
        goal=goal,
        folder=session.folder,
        evaluate=reused(bench, evaluate, known_scores(bench, study)),
        seconds=None if minutes is None else 60 * minutes,
        racing=bench.racing(),
        guide=_guide(session),
        differentiate=None if made is None else made.gradient,
        on_refusal=on_refusal,
        constrained={c.task: bench.documents("search")[c.task] for c in goal.constraints},
    )
    return Loop(
        attempt=attempt,
        budget=session.budget,
        presence=session.presence,
        on_trial=tell,
        enough=lambda: bench.loaded.config.stop_on_plateau and on_plateau(study),
        before=lambda: enqueue_further_baselines(study, bench),
        sources=tuple(bench.template.sources),
    )


def share_finalists(session: Session, loop: Loop) -> None:
    """Scores, with the other workers, what the verdict needs; after the trials, by every worker."""
    attempt, study, presence = loop.attempt, session.study, session.presence
    loop.wait_for_others()
    for record in read_trials(study):
        session.collect(record)

    score_finalists(
        study,
        session.folder,
        attempt.goal,
        session.bench.loaded.config.finalist_count(),
        attempt.evaluate,
        stop_asked=lambda: loop.stop_asked,
        limit=attempt.seconds,
        claim=lambda name: claim(study, session.folder, presence, name),
    )


def claim(study: optuna.Study, folder: RunFolder, presence: Presence, name: str) -> bool:
    """Whether what the study will keep under `name` is this worker's to score: nobody who lives has
    claimed it. What three workers died of fails."""
    key = f"{CLAIMED}:{name}"
    with folder.together():
        known = study.user_attrs.get(key) or {"worker": presence.name, "deaths": 0}
        deaths = known["deaths"]
        if known["worker"] != presence.name:
            if presence.alive(known["worker"]):
                return False
            deaths += 1
        if deaths >= MOST_DEATHS:
            study.set_user_attr(name, {"failure": f"the worker died {deaths} times on it"})
            return False
        study.set_user_attr(key, {"worker": presence.name, "deaths": deaths})
        return True


def conclude(session: Session, loop: Loop, keep_plateau: Callable[[], None]) -> Outcome:
    """What is left of the finalists, and the verdict; after the trials, by the one that leads."""
    study, folder, config = session.study, session.folder, session.bench.loaded.config
    attempt = loop.attempt
    share_finalists(session, loop)
    keep_plateau()  # by now of more trials
    if loop.stop_asked:
        return stopped(session, None)
    if not attempt.goal.settled:
        log.warning("the budget ended before base and sources were scored: no trial has a value")
    if attempt.goal.several:
        front = decide_front(study, folder, attempt.goal, config.seed)
        return Outcome(
            folder=folder.path, verdict=None, front=front, stopped=False, storage=session.storage
        )
    verdict = decide(study, folder, attempt.goal, config.seed)
    if verdict is not None:
        check_limits(study, folder, attempt.goal, [verdict.winner], config.seed)
    return Outcome(folder=folder.path, verdict=verdict, stopped=False, storage=session.storage)


def stopped(session: Session, by: str | None) -> Outcome:
    """The outcome of a search that was stopped by a signal."""
    log.warning("stopped; the same command goes on")
    return Outcome(
        folder=session.folder.path,
        verdict=None,
        stopped=True,
        stopped_by=by,
        storage=session.storage,
    )


class Lazily:
    """An `Evaluate` that loads the live model when it is first asked."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._made: Evaluate | None = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See `Evaluate`."""
        if self._made is None:
            self._made = evaluator(self._session.bench, self._session.folder.statistics)
            _keep_budget(self._session.bench, self._session)
        return self._made(*arguments, **options)


def _guide(session: Session) -> Guide | None:
    bench = session.bench
    if bench.guiding() is not None:
        return None
    documents = bench.documents("search")
    return Guide(
        study=session.study,
        space=bench.space,
        goal=session.goal(),
        folder=session.folder,
        documents={task: documents[task] for task in bench.goal.points.shares()},
    )


def _keep_budget(bench: Bench, session: Session) -> None:
    """Goes on with the batches that the study began with, found anew or not."""
    study = session.study
    with session.folder.together():
        known = study.user_attrs.get(BATCH_TOKENS)
        if known is None:
            study.set_user_attr(BATCH_TOKENS, bench.budget.tokens)
        else:
            bench.budget.set(known)
    log.info("%d tokens in a forward pass", bench.budget.tokens)

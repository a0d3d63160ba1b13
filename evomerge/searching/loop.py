"""The loop: ask for a recipe, make it, score it, record it; nothing ends the night but its end."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from evomerge.errors import SearchError, UserError
from evomerge.recipe import Recipe
from evomerge.scoring.scorecard import from_json
from evomerge.searching.attempt import Attempt
from evomerge.searching.presence import Presence
from evomerge.searching.record import (
    BASELINE,
    FINGERPRINT,
    GUIDE,
    IN_SPACE,
    RECIPE,
    RESULT,
    RETRY_OF,
    WORKER,
    TrialRecord,
    read_trial,
    read_trials,
    worker_stamp,
)
from evomerge.searching.recovery import give_back, take_up_interrupted
from evomerge.searching.references import settle
from evomerge.searching.study import untold
from evomerge.searching.tally import Tally

log = logging.getLogger(__name__)

_FAILURES_IN_A_ROW = 10
_REPEATS_IN_A_ROW = 200  # of weights that are known: nothing new is left to propose
_PAUSE = 0.25  # seconds before another look at what other workers do
_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_WITHOUT_NAME = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When the search ends: at whichever comes first."""

    trials: int | None = None
    documents: int | None = None
    """Search documents scored for all trials together, each kind counted."""
    deadline: datetime | None = None

    def spent(self, finished_trials: int, documents: int) -> bool:
        """Whether no further trial may start."""
        return (
            (self.trials is not None and finished_trials >= self.trials)
            or (self.documents is not None and documents >= self.documents)
            or (self.deadline is not None and datetime.now() >= self.deadline)
        )

    def facts(self) -> dict[str, Any]:
        """As a study keeps it."""
        end = self.deadline and self.deadline.astimezone()
        deadline = end and end.isoformat(timespec="seconds")
        return {"trials": self.trials, "documents": self.documents, "deadline": deadline}

    def full_trials(self, documents: int) -> int | None:
        """Trials of so many documents each that it allows, time aside; None: any number."""
        limits = [] if self.trials is None else [self.trials]
        if self.documents is not None:
            limits.append(-(-self.documents // documents))
        return min(limits, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A trial that this worker runs."""

    trial: optuna.Trial
    recipe: Recipe
    fingerprint: str
    seconds: dict[str, float]
    """By phase."""


@dataclass(slots=True, kw_only=True)
class Loop:
    """One worker's share of a study."""

    attempt: Attempt
    budget: Budget
    presence: Presence
    on_trial: Callable[[TrialRecord], None] = lambda record: None
    """Told every trial that ends, of all workers."""
    enough: Callable[[], bool] = lambda: False
    """Asked before every trial: whether the search ends before its budget is spent."""
    before: Callable[[], None] = lambda: None
    """Called before every trial is asked for; may put others into the queue."""
    sources: tuple[str, ...] = ()
    """Names of the sources, whose scores may decide what values are."""
    stop_asked: bool = False
    _study: optuna.Study = field(init=False)
    _tally: Tally = field(init=False)
    _news: list[TrialRecord] = field(default_factory=list)
    _nameless: dict[int, float] = field(default_factory=dict)
    """Running trial without a worker's name -> when it was first seen."""
    _looked: float = -math.inf
    """When trials of dead workers were last looked for."""

    def __post_init__(self) -> None:
        self._study = self.attempt.study
        self._tally = Tally(self._study)
        self._settle()
        for record in read_trials(self._study):
            self._remember(record)

    def stop(self) -> None:
        """Makes the trial under way the last one."""
        self.stop_asked = True

    def run(self) -> None:
        """Trials until the budget is spent or a stop was asked for.

        Also ends where a budget of documents is left, but nothing but repeats is proposed.
        Raises UserError after ten failures in a row: then the mistake is not the candidates'.
        """
        failures = repeats = 0
        while not (self.stop_asked or self.enough()):
            claimed = self._claim()
            self._hear()
            if claimed is None:
                return
            if claimed == "wait":
                time.sleep(_PAUSE)
                self.look_after()
                continue
            record = self._trial(claimed)
            failures = failures + 1 if record.state == "failed" else 0
            repeats = 0 if record.scored else repeats + 1
            self.look_after()
            if self.budget.documents is not None and repeats >= _REPEATS_IN_A_ROW:
                # Repeats cost no documents, so the budget alone would never end the search.
                log.warning("%d proposals in a row were known already: the search ends", repeats)
                return
            if failures >= _FAILURES_IN_A_ROW:
                folder = self.attempt.folder
                raise UserError(
                    f"{failures} candidates in a row failed, the last with: {record.failure}. "
                    f"See {folder.log}; the same command goes on from here"
                )

    def wait_for_others(self) -> None:
        """Until no worker has a trial under way any more, or a stop was asked for."""
        while not self.stop_asked:
            self.look_after()
            if not self._tally.running:
                return
            time.sleep(_PAUSE)

    def look_after(self) -> None:
        """What is due between trials: those of dead workers, values that wait, what is new."""
        self._take_up()
        self._settle()
        self._news += self._tally.look()
        self._hear()

    def _take_up(self) -> None:
        """What dead workers left, for the one that leads."""
        if time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS or not self.presence.leads():
            return
        self._looked = time.monotonic()
        back = take_up_interrupted(self._study, self._alive)
        if back:
            log.warning("%d trial(s) of workers that died are taken up again", back)

    def _alive(self, trial: FrozenTrial) -> bool:
        """In a database, a trial is there a moment before the name of its worker."""
        if WORKER in trial.user_attrs:
            return self.presence.alive(trial.user_attrs[WORKER].get("worker", ""))
        first = self._nameless.setdefault(trial.number, time.monotonic())
        return time.monotonic() - first < _SECONDS_WITHOUT_NAME

    def _claim(self) -> Claimed | Literal["wait"] | None:
        """The next trial; None: the budget is spent. Where all workers share the journal, nobody
        else proposes meanwhile, and others see it in whole or not at all."""
        start = time.perf_counter()
        attempt, limit = self.attempt, self.budget.trials
        with attempt.folder.together():
            self._news += self._tally.look()
            done, running = self._tally.done, self._tally.running
            if self.budget.spent(done, self._tally.documents):
                return None
            if limit is not None and done + running >= limit:
                return "wait"  # a trial under way may yet be interrupted
            self.before()
            if attempt.guide is not None:
                attempt.guide.queue()
            trial = self._study.ask()
            trial.set_user_attr(WORKER, worker_stamp(self.presence.name))
            if self._is_double(trial):
                self._study.tell(trial, state=TrialState.FAIL)
                return "wait"
            recipe = self._recipe(trial)
            fingerprint = recipe.fingerprint()
            trial.set_user_attr(RECIPE, recipe.to_json())
            trial.set_user_attr(FINGERPRINT, fingerprint)
        seconds = {"propose": time.perf_counter() - start}
        return Claimed(trial=trial, recipe=recipe, fingerprint=fingerprint, seconds=seconds)

    def _trial(self, claimed: Claimed) -> TrialRecord:
        trial = claimed.trial
        try:
            self.attempt.run(trial, claimed.recipe, claimed.fingerprint, claimed.seconds)
        except SearchError:
            give_back(self._study, trial.number)
            raise
        except UpdateFinishedTrialError:
            log.warning(
                "trial %d: others took this worker for dead; its scores are dropped", trial.number
            )
        return read_trial(self._study.get_trials(deepcopy=False)[trial.number])

    def _recipe(self, trial: optuna.Trial) -> Recipe:
        """The proposal, or what a baseline or an interrupted trial brings with it."""
        given = trial.user_attrs.get(RECIPE)
        if given is None:
            return self.attempt.space.propose(trial)
        if trial.user_attrs[IN_SPACE]:
            self.attempt.space.propose(trial)
        return Recipe.from_json(given)

    def _is_double(self, trial: optuna.Trial) -> bool:
        """Whether an earlier trial is the same one: in a database, two workers may put it into the
        queue at once."""
        known = trial.user_attrs
        for name in (BASELINE, GUIDE, RETRY_OF):
            key = known.get(name)
            if key is None:
                continue
            for other in self._study.get_trials(deepcopy=False)[: trial.number]:
                dead = other.state == TrialState.FAIL and RESULT not in other.user_attrs
                if other.user_attrs.get(name) == key and not dead:
                    return True
        return False

    def _settle(self) -> None:
        """Once base and sources are scored, tells the trials whose values waited for them."""
        attempt = self.attempt
        if not attempt.goal.settled:
            goal = settle(self._study, attempt.folder, attempt.goal, self.sources)
            if not goal.settled:
                return
            attempt.settle(goal)
        if not untold(self._study):
            return
        with attempt.folder.together():
            for trial in untold(self._study):
                result = trial.user_attrs[RESULT]
                # Its parameters stand: what it is made of now draws nothing.
                again = optuna.Trial(self._study, trial._trial_id)
                # In a database, another worker may be faster.
                with suppress(UpdateFinishedTrialError, ValueError):
                    attempt.tell(again, result, from_json(result["metrics"]))

    def _hear(self) -> None:
        """Of the trials that ended, of all workers."""
        news, self._news = self._news, []
        for record in news:
            self._remember(record)
            self.on_trial(record)

    def _remember(self, record: TrialRecord) -> None:
        """Tells the racing how a finished trial did."""
        racing, goal = self.attempt.racing, self.attempt.goal
        if racing is None or record.state not in ("complete", "pruned") or not record.feasible:
            return
        metrics = goal.climbed.found(record.metrics)
        if metrics is None or record.same_as is not None:
            return
        racing.add(record.number, self.attempt.folder.scores("search", record.number), metrics)

"""The loop: ask for a recipe, make it, score it, record it; nothing ends the night but its end."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState

from evomerge.errors import EvomergeError, UserError
from evomerge.recipe import Recipe
from evomerge.scoring.scorecard import Scorecard, to_json, write_documents
from evomerge.searching.objective import Objective
from evomerge.searching.record import (
    FINGERPRINT,
    IN_SPACE,
    RECIPE,
    RESULT,
    WORKER,
    TrialRecord,
    read_trial,
    worker_stamp,
)
from evomerge.searching.run_folder import RunFolder, Side
from evomerge.searching.space import Space
from evomerge.searching.study import finished, scored_before

log = logging.getLogger(__name__)

_FAILURES_IN_A_ROW = 10


class Evaluate(Protocol):
    """Makes a recipe's weights and scores them on one side of the split."""

    def __call__(self, recipe: Recipe, documents: Side, /) -> tuple[Scorecard, Mapping[str, float]]:
        """The scores, and the seconds spent by phase (merge, model, metric)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When the search ends: at whichever comes first."""

    trials: int | None = None
    deadline: datetime | None = None

    def spent(self, finished_trials: int) -> bool:
        """Whether no further trial may start."""
        return (self.trials is not None and finished_trials >= self.trials) or (
            self.deadline is not None and datetime.now() >= self.deadline
        )


@dataclass(slots=True, kw_only=True)
class Loop:
    """One process's share of a study."""

    study: optuna.Study
    space: Space
    objective: Objective
    folder: RunFolder
    evaluate: Evaluate
    budget: Budget
    on_trial: Callable[[TrialRecord], None] = lambda record: None
    stop_asked: bool = False

    def stop(self) -> None:
        """Makes the trial under way the last one."""
        self.stop_asked = True

    def run(self) -> None:
        """Trials until the budget is spent or a stop was asked for.

        Raises UserError after ten failures in a row: then the mistake is not the candidates'.
        """
        done = len(finished(self.study))
        failures = 0
        while not self.stop_asked and not self.budget.spent(done):
            record = self._trial()
            done += 1
            failures = failures + 1 if record.state == "failed" else 0
            self.on_trial(record)
            if failures >= _FAILURES_IN_A_ROW:
                raise UserError(
                    f"{failures} candidates in a row failed, the last with: {record.failure}. "
                    f"See {self.folder.log}; the same command goes on from here"
                )

    def _trial(self) -> TrialRecord:
        start = time.perf_counter()
        trial = self.study.ask()
        recipe = self._recipe(trial)
        fingerprint = recipe.fingerprint()
        seconds = {"propose": time.perf_counter() - start}
        trial.set_user_attr(RECIPE, recipe.to_mapping())
        trial.set_user_attr(FINGERPRINT, fingerprint)
        trial.set_user_attr(WORKER, worker_stamp())
        if (twin := scored_before(self.study, fingerprint)) is not None:
            self._copy(trial, twin)
        else:
            self._score(trial, recipe, seconds)
        return read_trial(self.study.get_trials(deepcopy=False)[trial.number])

    def _recipe(self, trial: optuna.Trial) -> Recipe:
        """The proposal, or what a baseline or an interrupted trial brings with it."""
        given = trial.user_attrs.get(RECIPE)
        if given is None:
            return self.space.propose(trial)
        if trial.user_attrs[IN_SPACE]:
            self.space.propose(trial)
        return Recipe.from_mapping(given)

    def _score(self, trial: optuna.Trial, recipe: Recipe, seconds: dict[str, float]) -> None:
        try:
            scorecard, spent = self.evaluate(recipe, "search")
            metrics = self.objective.metrics(scorecard)
            value = self.objective.value(metrics)
        except EvomergeError as error:
            self._fail(trial, str(error), seconds)
        except Exception as error:
            log.exception("trial %d: scoring or merging raised", trial.number)
            self._fail(trial, f"{type(error).__name__}: {error}", seconds)
        else:
            before = time.perf_counter()
            seconds |= spent
            write_documents(scorecard, self.folder.documents("search", trial.number))
            seconds["record"] = time.perf_counter() - before
            result = {"value": value, "metrics": to_json(scorecard.metrics), "seconds": seconds}
            if scorecard.remarks:
                result["remarks"] = list(scorecard.remarks)
            trial.set_user_attr(RESULT, result)
            self.study.tell(trial, value)

    def _fail(self, trial: optuna.Trial, reason: str, seconds: Mapping[str, float]) -> None:
        trial.set_user_attr(RESULT, {"failure": reason, "seconds": dict(seconds)})
        self.study.tell(trial, state=TrialState.FAIL)

    def _copy(self, trial: optuna.Trial, twin: optuna.trial.FrozenTrial) -> None:
        """The same weights were scored before: the scores are taken over, nothing is run."""
        folder = self.folder
        shutil.copyfile(
            folder.documents("search", twin.number), folder.documents("search", trial.number)
        )
        result: dict[str, Any] = {**twin.user_attrs[RESULT], "seconds": {}, "same_as": twin.number}
        trial.set_user_attr(RESULT, result)
        self.study.tell(trial, result["value"])

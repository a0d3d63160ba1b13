"""What a study keeps of a trial, and how it is read back."""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from evomerge.errors import UserError
from evomerge.recipe import BASE, Recipe
from evomerge.scoring.answers import Answers, answers_from_json
from evomerge.scoring.scorecard import Metric, from_json

# Names of user attributes, as they stand in every storage.
BASELINE = "baseline"  # name of the baseline that the trial is
RECIPE = "recipe"  # Recipe.to_mapping()
IN_SPACE = "in_space"  # whether a queued recipe carries parameters of the space
FINGERPRINT = "fingerprint"
WORKER = "worker"  # host, pid, time of start
RESULT = "result"  # value, metrics, answers, seconds by phase; or the reason of a failure
RETRY_OF = "retry_of"  # number of the interrupted trial that this one takes up again
CARRIED = "carried_from"  # run and number of the trial whose scores were taken over


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One trial as tables, reports and exports see it."""

    number: int
    state: str
    """complete, failed (a candidate that could not be made or scored), interrupted, running,
    waiting."""
    baseline: str | None
    recipe_mapping: Mapping[str, Any] | None
    """As Recipe.to_mapping() made it."""
    fingerprint: str | None
    value: float | None
    """The objective on the search documents; higher is better."""
    metrics: tuple[Metric, ...]
    answers: Answers
    """Task -> how its answers to the search documents ended."""
    seconds: Mapping[str, float]
    """By phase: propose, merge, model (forward passes and decoding), metric (the rest of scoring),
    record."""
    failure: str | None
    started: datetime | None
    host: str | None
    retry_of: int | None

    @property
    def recipe(self) -> Recipe:
        """The recipe that was tried; UserError for a trial that never began."""
        if self.recipe_mapping is None:
            raise UserError(f"trial {self.number} has no recipe: it is {self.state}")
        return Recipe.from_mapping(self.recipe_mapping, f"the recipe of trial {self.number}")

    @property
    def name(self) -> str:
        """`trial 12`, or the baseline's name."""
        return self.baseline or f"trial {self.number}"


def worker_stamp() -> dict[str, Any]:
    """Who works on a trial, since when."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read_trial(trial: FrozenTrial) -> TrialRecord:
    """The record of one of Optuna's trials."""
    attributes = trial.user_attrs
    result = attributes.get(RESULT, {})
    worker = attributes.get(WORKER, {})
    states = {
        TrialState.COMPLETE: "complete",
        TrialState.FAIL: "failed" if result.get("failure") else "interrupted",
        TrialState.RUNNING: "running",
        TrialState.WAITING: "waiting",
    }
    return TrialRecord(
        number=trial.number,
        state=states.get(trial.state, trial.state.name.lower()),
        baseline=attributes.get(BASELINE),
        recipe_mapping=attributes.get(RECIPE),
        fingerprint=attributes.get(FINGERPRINT),
        value=trial.values[0] if trial.state == TrialState.COMPLETE else None,
        metrics=from_json(result.get("metrics", [])),
        answers=answers_from_json(result.get("answers", {})),
        seconds=result.get("seconds", {}),
        failure=result.get("failure"),
        started=datetime.fromisoformat(worker["started"]) if worker else None,
        host=worker.get("host"),
        retry_of=attributes.get(RETRY_OF),
    )


def read_trials(study: optuna.Study) -> list[TrialRecord]:
    """All trials of a study, by number."""
    return [read_trial(trial) for trial in study.get_trials(deepcopy=False)]


def base_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The trial that scored the base; None where none has."""
    scored = (record for record in records if record.baseline == BASE and record.value is not None)
    return next(scored, None)

"""What a study keeps of a trial, and how it is read back."""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
START = "start"  # name of the start that the trial is, where it is not a baseline
RECIPE = "recipe"  # Recipe.to_json()
IN_SPACE = "in_space"  # whether a queued recipe carries parameters of the space
FINGERPRINT = "fingerprint"
WORKER = "worker"  # host, pid, time of start, and name of the worker
RESULT = "result"  # value or estimate, metrics, answers, documents, seconds; or why it failed
SCORED = "scored"  # state of a trial whose value waits for the scores of base and sources
SLOPES = "slopes"  # in a result: parameter -> slope of the smooth objective
RETRY_OF = "retry_of"  # number of the interrupted trial that this one takes up again
DEATHS = "deaths"  # how many workers died while on this candidate and the search went on
FILES = "files"  # of a study in a database: the trial's files, as `sent_files` packs them
POINTS = "points"  # prefix of study attributes: `points:12` has what was scored later of trial 12
GUIDE = "guide"  # of a guided trial: steps taken before it, and whether it looks at all documents
CARRIED = "carried_from"  # run and number of the trial whose scores were taken over


DONE = ("complete", "step", "pruned", "failed")
"""States of trials that a budget counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One trial as tables, reports and exports see it."""

    number: int
    state: str
    """complete, step (along the gradient, on some documents), pruned (given up after some
    documents), failed (a candidate that could not be made or scored), scored (its value waits for
    the scores of base and sources), interrupted, running,
    waiting."""
    baseline: str | None
    recipe_text: str | None
    """As Recipe.to_json() made it; None for a trial that never began."""
    fingerprint: str | None
    parameters: Mapping[str, Any]
    """Of the space, as the sampler knows them; none of a recipe that the space cannot express."""
    value: float | None
    """What is climbed, on all search documents; higher is better. None unless complete. Of several
    objectives the mean over all tasks."""
    values: tuple[float, ...]
    """As the sampler was told them: one for each objective."""
    violations: Mapping[str, float]
    """Task under constraint -> by how much the limit is missed, in the metric's unit; not above 0
    where it is kept."""
    estimate: float | None
    """Of a pruned trial: what its value was expected to be."""
    metrics: tuple[Metric, ...]
    """On the search documents, or on those that were scored before it was pruned."""
    documents: Mapping[str, int]
    """Search documents scored for it, by kind: metric, smooth; none where scores were copied."""
    share: float | None
    """Of the search documents, how much was scored before it was complete or pruned."""
    pruned: str | None
    """What gave it up: race or halving; None for steps along the gradient."""
    step: int | None
    """Of a trial along the gradient: steps taken before it."""
    pruned_against: int | None
    """Number of the incumbent that it was compared with."""
    pruned_because: str | None
    """Why not all documents were scored, in words."""
    answers: Answers
    """Task -> how its answers to the search documents ended."""
    seconds: Mapping[str, float]
    """By phase: propose, merge, model (forward passes and decoding), metric (the rest of scoring),
    record."""
    remarks: tuple[str, ...]
    """What was not done as usual when it was scored, in words."""
    failure: str | None
    started: datetime | None
    host: str | None
    worker: str | None
    """Name of the worker that ran it."""
    retry_of: int | None
    same_as: int | None = None
    """Number of the trial of the same weights whose scores it took over."""

    @property
    def recipe(self) -> Recipe:
        """The recipe that was tried; UserError for a trial that never began."""
        if self.recipe_text is None:
            raise UserError(f"trial {self.number} has no recipe: it is {self.state}")
        return Recipe.from_json(self.recipe_text, f"the recipe of trial {self.number}")

    @property
    def scored(self) -> int:
        """Search documents scored for it, of all kinds."""
        return sum(self.documents.values())

    @property
    def feasible(self) -> bool:
        """Whether it keeps all limits that it is known to have been measured by."""
        return all(amount <= 0 for amount in self.violations.values())

    @property
    def name(self) -> str:
        """`trial 12`, or the baseline's name."""
        return self.baseline or f"trial {self.number}"


def worker_stamp(worker: str) -> dict[str, Any]:
    """Who works on a trial, since when; worker: a name that no other one has."""
    return {
        "worker": worker,
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
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed" if result.get("failure") else "interrupted",
        TrialState.RUNNING: SCORED if "metrics" in result else "running",
        TrialState.WAITING: "waiting",
    }
    state = states.get(trial.state, trial.state.name.lower())
    return TrialRecord(
        number=trial.number,
        state="step" if SLOPES in result else state,
        baseline=attributes.get(BASELINE),
        recipe_text=attributes.get(RECIPE),
        fingerprint=attributes.get(FINGERPRINT),
        parameters=trial.params,
        value=_value(trial, result),
        values=tuple(trial.values) if trial.state == TrialState.COMPLETE else (),
        violations=result.get("violations", {}),
        estimate=result.get("estimate"),
        metrics=from_json(result.get("metrics", [])),
        documents=result.get("documents", {}),
        share=result.get("share"),
        pruned=result.get("pruned"),
        step=attributes.get(GUIDE, {}).get("step"),
        pruned_against=result.get("against"),
        pruned_because=result.get("because"),
        answers=answers_from_json(result.get("answers", {})),
        seconds=result.get("seconds", {}),
        remarks=tuple(result.get("remarks", ())),
        failure=result.get("failure"),
        started=datetime.fromisoformat(worker["started"]) if worker else None,
        host=worker.get("host"),
        worker=worker.get("worker"),
        retry_of=attributes.get(RETRY_OF),
        same_as=result.get("same_as"),
    )


def _value(trial: FrozenTrial, result: Mapping[str, Any]) -> float | None:
    if trial.state != TrialState.COMPLETE:
        return None
    return trial.values[0] if len(trial.values) == 1 else float(result["value"])


def read_trials(study: optuna.Study) -> list[TrialRecord]:
    """All trials of a study, by number, with the metrics that were scored after their end."""
    records = {trial.number: read_trial(trial) for trial in study.get_trials(deepcopy=False)}
    for key, later in study.user_attrs.items():
        name, _, number = key.partition(":")
        if name == POINTS and "metrics" in later:
            records[int(number)] = with_later(records[int(number)], later)
    return list(records.values())


def with_later(record: TrialRecord, later: Mapping[str, Any]) -> TrialRecord:
    """The record with what was scored after the trial's end: a study attribute `points:N`."""
    known = {(metric.task, metric.name) for metric in record.metrics}
    further = [m for m in from_json(later["metrics"]) if (m.task, m.name) not in known]
    documents, seconds = (
        {k: before.get(k, 0) + more.get(k, 0) for k in (*before, *more)}
        for before, more in (
            (record.documents, later["documents"]),
            (record.seconds, later["seconds"]),
        )
    )
    return replace(
        record,
        metrics=(*record.metrics, *further),
        answers={**record.answers, **answers_from_json(later["answers"])},
        documents=documents,
        seconds=seconds,
    )


def base_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The trial that scored the base; None where none has."""
    scored = (record for record in records if record.baseline == BASE and record.value is not None)
    return next(scored, None)

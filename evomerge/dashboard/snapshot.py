"""A run at one moment, with its trials as a table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from evomerge.dashboard.columns import Key, Vector
from evomerge.dashboard.study_index import Index
from evomerge.report import RunReport, report_of
from evomerge.scoring.scorecard import SMOOTH
from evomerge.searching.objective import Goal
from evomerge.searching.record import DONE, TrialRecord, base_of
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.study import HISTORY, OBJECTIVE, TASKS

_LATEST = 50  # trials that the present pace is told from


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A run at one moment."""

    report: RunReport
    """Its records have no recipes; of metrics, only those of baselines and of the best."""
    index: Index
    revision: int
    """Grows with every change."""

    @property
    def trials(self) -> int:
        """How many there are, in whatever state."""
        return len(self.report.records)

    @property
    def unit(self) -> str:
        """Of the values that trials climb: nats, points, ..."""
        return self.report.goal.climbed.unit

    @property
    def factor(self) -> float:
        """Of these values, as they are shown."""
        return 1.0 if self.unit == "nats" else 100.0

    @cached_property
    def tasks(self) -> dict[str, Key]:
        """Task -> its own metric."""
        targets = self.report.goal.points.targets.items()
        return {task: (task, target.metric) for task, target in targets}

    def column(self, task: str, field: str = "value") -> Vector:
        """[trials]: the task's own metric; NaN for trials not scored on all search documents.
        field: value, standard_error, documents."""
        values = self.index.columns.values(self.tasks[task], self.trials, field)
        values[~self._scored] = np.nan
        return values

    @cached_property
    def points(self) -> Vector:
        """[trials]: the tasks' own metrics as the goal counts them; NaN where not scored."""
        objective, columns = self.report.goal.points, self.index.columns
        total = np.zeros(self.trials)
        for task, share in objective.shares().items():
            sign = 1.0 if columns.higher_is_better(self.tasks[task]) else -1.0
            scale = objective.scales.get(task)
            zero, unit = (0.0, 1.0) if scale is None else (scale.zero, scale.unit)
            total += share * (sign * self.column(task) - zero) / unit
        return total

    @cached_property
    def errors(self) -> Vector:
        """[trials]: standard errors of `points`."""
        weights = self.report.goal.points.weights().items()
        squares = [(weight * self.column(task, "standard_error")) ** 2 for task, weight in weights]
        found: Vector = np.sqrt(np.sum(squares, axis=0))
        return found

    @cached_property
    def _scored(self) -> Any:
        return np.array([record.value is not None for record in self.report.records], dtype=bool)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per trial, by number, in the units in which pages show them: points (percent),
        or nats."""
        records = self.report.records
        rows: dict[str, Any] = {
            "trial": [record.number for record in records],
            "rank": self._ranks,
            "name": [record.name for record in records],
            "state": [record.state for record in records],
            "methods": [" ".join(self.index.methods(record.number)) for record in records],
            "points": 100 * self.points,
            "error": 100 * self.errors,
            "value": _numbers(record.value for record in records) * self.factor,
            "estimate": _numbers(record.estimate for record in records) * self.factor,
            "documents": 100 * _numbers(record.share for record in records),
            "seconds": _numbers(sum(r.seconds.values()) or None for r in records),
            "kept": [record.feasible for record in records],
            "because": [r.failure or r.pruned_because or "" for r in records],
        }
        for task in self.tasks:
            rows[f"task {task}"] = 100 * self.column(task)
            rows[f"error {task}"] = 100 * self.column(task, "standard_error")
        return pd.DataFrame(rows, index=pd.RangeIndex(len(records), name="number"))

    @cached_property
    def ranked(self) -> list[TrialRecord]:
        """As the report ranks them."""
        return self.report.ranked

    @cached_property
    def winner(self) -> TrialRecord | None:
        """The verdict's, else the knee of a front, else the best so far."""
        report = self.report
        if report.verdict is not None:
            return report.records[report.verdict.winner]
        return report.knee if report.goal.several else next(iter(self.ranked), None)

    @cached_property
    def _ranks(self) -> Vector:
        """[trials]: 1 for the best; NaN for those that are not ranked."""
        found = np.full(self.trials, np.nan)
        found[[record.number for record in self.ranked]] = np.arange(1, len(self.ranked) + 1)
        return found

    def named(self, name: str) -> int | None:
        """The number of the baseline of that name; None where there is none."""
        own = (record.number for record in self.report.records if record.baseline == name)
        return next(own, None)

    @cached_property
    def best_baseline(self) -> TrialRecord | None:
        """On the search documents, by what trials climb."""
        plain = [r for r in self.report.records if r.baseline is not None and r.value is not None]
        return max(plain, key=lambda record: record.value or 0.0, default=None)

    @cached_property
    def base(self) -> TrialRecord | None:
        """The trial that scored the base."""
        return base_of(self.report.records)

    def per_hour(self) -> float | None:
        """Trials per hour, of the latest ones; None before there are two."""
        times = [r.started for r in self.report.records[-_LATEST:] if r.started is not None]
        if len(times) < 2 or times[-1] <= times[0]:
            return None
        return 3600 * (len(times) - 1) / (times[-1] - times[0]).total_seconds()

    def budget(self) -> Mapping[str, Any]:
        """Of the latest start: trials, documents, deadline (ISO), where there are such limits."""
        found: Mapping[str, Any] = self.index.attributes.get(HISTORY, [{}])[-1].get("budget", {})
        return found

    def done(self) -> str:
        """`57`, or `57 of 220` where the budget counts trials."""
        count = sum(record.state in DONE for record in self.report.records)
        limit = self.budget().get("trials")
        return f"{count} of {limit}" if limit and self.report.running else str(count)

    def remaining(self) -> timedelta | None:
        """Time until the budget is spent, at the present pace; None where it cannot be told."""
        ends = []
        budget, pace = self.budget(), self.per_hour()
        done = sum(r.state in DONE for r in self.report.records)
        spent = sum(record.scored for record in self.report.records)
        if budget.get("trials") and pace:
            ends.append(timedelta(hours=(budget["trials"] - done) / pace))
        if budget.get("documents") and pace and spent:
            left = (budget["documents"] - spent) * done / spent
            ends.append(timedelta(hours=left / pace))
        if budget.get("deadline"):
            ends.append(
                datetime.fromisoformat(budget["deadline"]).astimezone()
                - datetime.now().astimezone()
            )
        return max(min(ends), timedelta()) if ends and self.report.running else None


def snapshot_of(folder: RunFolder, index: Index, revision: int) -> Snapshot | None:
    """None where the search has not begun yet."""
    attributes = index.attributes
    if OBJECTIVE not in attributes or TASKS not in attributes:
        return None
    report = report_of(folder, attributes, ())
    records = _with_metrics(index, report.goal, set(report.holdout))
    return Snapshot(replace(report, records=tuple(records)), index, revision)


def _with_metrics(index: Index, goal: Goal, held: set[int]) -> list[TrialRecord]:
    """The records, those with the metrics that ranking and tables look at."""
    records = index.records()
    tasks = goal.points.targets.items()
    keys = [(task, target.metric) for task, target in tasks]
    keys += [(task, SMOOTH) for task, _ in tasks]
    best = sorted(
        (record for record in records if record.value is not None),
        key=lambda record: -(record.value or 0.0),
    )
    wanted = {record.number for record in best[: 4 * goal.leaders]} | held
    wanted |= {record.number for record in records if record.baseline is not None}
    for number in wanted:
        metrics = tuple(index.columns.metrics(number, keys))
        records[number] = replace(records[number], metrics=metrics)
    return records


def _numbers(values: Iterable[float | None]) -> Vector:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

"""The trials of a run as a table for a terminal."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from evomerge.errors import UserError, did_you_mean
from evomerge.report import RunReport
from evomerge.searching.objective import amount
from evomerge.searching.record import TrialRecord

STATES = (
    "complete",
    "step",
    "pruned",
    "failed",
    "scored",
    "interrupted",
    "running",
    "waiting",
)
_SIGNS = "* winner, ! score in doubt, x breaks a limit, ~ estimate from a part of the documents"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which trials, in which order."""

    sort: str | None = None
    """A column of `RunReport.trials()`; None: as the search ranks them."""
    descending: bool = True
    """The highest, latest, or best first."""
    limit: int | None = None
    states: Collection[str] = ()
    """Empty: all."""


def read_states(text: str | None) -> tuple[str, ...]:
    """`complete,pruned` -> the states; UserError for an unknown one."""
    states = tuple(state.strip() for state in text.split(",")) if text else ()
    for state in states:
        if state not in STATES:
            raise UserError(f"--state: unknown state {state!r}; {did_you_mean(state, STATES)}")
    return states


def select_trials(
    report: RunReport, frame: pd.DataFrame, selection: Selection
) -> list[TrialRecord]:
    """The trials, in order. frame: as `report.trials()` made it; UserError where it lacks the
    column that they are to be sorted by.

    As the search ranks them: the ranked ones, then by value or estimate, then those without.
    """
    if selection.sort is None:
        order = _best_first(report)
        order = order if selection.descending else order[::-1]
    else:
        order = _by_column(report, frame, selection.sort, selection.descending)
    states = selection.states or STATES
    return [record for record in order if record.state in states]


def _best_first(report: RunReport) -> list[TrialRecord]:
    ranked = report.ranked
    known = {record.number for record in ranked}
    others = [record for record in report.records if record.number not in known]
    others.sort(key=lambda record: -_climbed(record))
    return [*ranked, *others]


def _climbed(record: TrialRecord) -> float:
    """The value, else the estimate; of neither, and beside a broken limit, the lowest."""
    value = record.estimate if record.value is None else record.value
    return value if value is not None and record.feasible else float("-inf")


def _by_column(
    report: RunReport, frame: pd.DataFrame, column: str, descending: bool
) -> list[TrialRecord]:
    """Trials without a value there stand last in either direction."""
    known = [frame.index.name, *frame.columns]
    if column not in known:
        raise UserError(f"--sort: unknown column {column!r}; {did_you_mean(column, known)}")
    ordered = frame.reset_index().sort_values(column, ascending=not descending, kind="stable")
    return [report.by_number[number] for number in ordered["number"]]


def table_of_trials(report: RunReport, selection: Selection) -> list[RenderableType]:
    """A line per trial with its value, the points of each task with their standard error, and
    seconds; then what the signs mean."""
    frame = report.trials()
    wanted = select_trials(report, frame, selection)
    records = wanted[: selection.limit]
    count = f"{len(records)} of {len(report.records)} trials; tasks in points ± standard error; "
    return [_table(report, frame, records), Text(count + _SIGNS)]


def _table(report: RunReport, frame: pd.DataFrame, records: Collection[TrialRecord]) -> Table:
    tasks = list(report.goal.points.targets)
    held = bool(report.holdout)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in ("", "trial", "state", "value"):
        table.add_column(name, overflow="fold")
    for task in tasks:
        table.add_column(Text(task), justify="right", overflow="fold")
        if held:
            table.add_column(Text(f"{task} holdout"), justify="right", overflow="fold")
    table.add_column("seconds", justify="right")
    table.add_column("methods", overflow="fold")
    rows = frame.loc[[record.number for record in records]].to_dict("index")
    for record in records:
        row: Mapping[Any, Any] = rows[record.number]
        names = [name for task in tasks for name in (task, f"{task} holdout")[: 1 + held]]
        table.add_row(
            Text(_marks(report, record)),
            Text(record.name),
            Text(_state(record)),
            Text(_value(report, record)),
            *(_points(row[name], row[f"{name} error"]) for name in names),
            "" if pd.isna(row["seconds"]) else f"{row['seconds']:.2f}",
            Text(row["methods"] or ""),
        )
    return table


def _marks(report: RunReport, record: TrialRecord) -> str:
    """`*` the winner, `!` a score in doubt, `x` a broken limit."""
    winner = report.verdict is not None and record.number == report.verdict.winner
    marks = {"*": winner, "!": bool(report.warnings(record)), "x": not record.feasible}
    return "".join(mark for mark, holds in marks.items() if holds)


def _state(record: TrialRecord) -> str:
    return f"{record.state}: {record.failure}" if record.failure else record.state


def _value(report: RunReport, record: TrialRecord) -> str:
    """In points where they are known, and in what is climbed; `~`: an estimate."""
    if record.value is not None:
        return report.goal.text(record.value, record.metrics)
    if record.estimate is not None:
        return f"~{amount(record.estimate, report.goal.climbed.unit)}"
    return ""


def _points(value: float | None, error: float | None) -> str:
    if pd.isna(value) or value is None:
        return ""
    return f"{100 * value:.1f}" + ("" if pd.isna(error) else f" ±{100 * (error or 0.0):.1f}")

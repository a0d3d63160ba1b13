"""The trials of a run as a table for a terminal."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from evomerge.errors import UserError, did_you_mean
from evomerge.report import RunReport
from evomerge.searching.objective import UNIT_NAMES, amount
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
_WORDS = ("", "trial", "state", "methods")
_GAP = 2  # characters between columns
_NOTE = 16  # characters that methods, or why a trial failed, may be cut to


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


def table_of_trials(report: RunReport, selection: Selection, width: int) -> list[Table | Text]:
    """A line per trial with its value, the points of each task with their standard error, and
    seconds; then what the signs mean.

    width: in characters; columns for which there is no room are left out from the right, and named.
    """
    frame = report.trials()
    records = select_trials(report, frame, selection)[: selection.limit]
    columns = _columns(report, frame, records)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    shown, room = [], width
    for name, cells in columns.items():
        header = _header(name)
        wide = max(
            cell_len(line) for cell in (header, *cells) for line in cell.splitlines() or [""]
        )
        needs = min(wide, _NOTE) if name == "methods" else wide
        if needs > room:
            break
        justify: Literal["left", "right"] = "left" if name in _WORDS else "right"
        # Only a note may be wider than what is left; it alone is then cut.
        table.add_column(
            Text(header), justify=justify, no_wrap=True, max_width=room, overflow="ellipsis"
        )
        room -= wide + _GAP
        shown.append(cells)
    for row in zip(*shown, strict=True):
        table.add_row(*map(Text, row))
    unit = UNIT_NAMES[report.goal.points.unit]
    words = f"{len(records)} of {len(report.records)} trials; mean in {unit}, tasks in points "
    words += f"± standard error; {_SIGNS}"
    if left_out := list(columns)[len(shown) :]:
        words += f". No room for: {', '.join(left_out)}"
    return [table, Text(words)]


def _columns(
    report: RunReport, frame: pd.DataFrame, records: Sequence[TrialRecord]
) -> dict[str, list[str]]:
    """Header -> a cell for each trial; the less important ones last."""
    rows: list[Mapping[Any, Any]] = [frame.loc[record.number].to_dict() for record in records]
    values = [_values(report, record) for record in records]
    columns = {
        "": [_marks(report, record) for record in records],
        "trial": [record.name for record in records],
        "state": [record.state for record in records],
        "mean": [points for points, _ in values],
    }
    if report.goal.kind != "metric":
        columns[UNIT_NAMES[report.goal.climbed.unit]] = [climbed for _, climbed in values]
    for task in report.goal.points.targets:
        for name in (task, f"{task} holdout"):
            cells = [_points(row[name], row[f"{name} error"]) for row in rows]
            if name == task or any(cells):
                columns[name] = cells
    spent = [row["seconds"] for row in rows]
    columns["seconds"] = ["" if pd.isna(each) else f"{each:.2f}" for each in spent]
    columns["methods"] = [
        record.failure or row["methods"] or "" for record, row in zip(records, rows, strict=True)
    ]
    return columns


def _header(name: str) -> str:
    """The side of the split below the task, since figures are narrower."""
    return name.removesuffix(" holdout") + "\nholdout" * name.endswith(" holdout")


def _marks(report: RunReport, record: TrialRecord) -> str:
    """`*` the winner, `!` a score in doubt, `x` a broken limit."""
    winner = report.verdict is not None and record.number == report.verdict.winner
    marks = {"*": winner, "!": bool(report.warnings(record)), "x": not record.feasible}
    return "".join(mark for mark, holds in marks.items() if holds)


def _values(report: RunReport, record: TrialRecord) -> tuple[str, str]:
    """The mean over tasks, and what is climbed; `~`: an estimate."""
    goal = report.goal
    value = record.estimate if record.value is None else record.value
    climbed = "" if value is None else amount(value, goal.climbed.unit).split()[0]
    climbed = f"~{climbed}" if record.value is None and climbed else climbed
    points = report.points(record)
    if points is not None:
        return amount(points, goal.points.unit).split()[0], climbed
    return climbed if goal.kind == "metric" else "", climbed


def _points(value: float | None, error: float | None) -> str:
    if pd.isna(value) or value is None:
        return ""
    return f"{100 * value:.1f}" + ("" if pd.isna(error) else f" ±{100 * (error or 0.0):4.1f}")

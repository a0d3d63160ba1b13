"""A run as pandas frames; configs/NOTEBOOK.md lists every column with its unit."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from evomerge.errors import UserError
from evomerge.files import replacing
from evomerge.scoring.answers import SHARES
from evomerge.scoring.scorecard import Metric
from evomerge.searching.record import TrialRecord

if TYPE_CHECKING:
    from evomerge.report import RunReport

SCORE_COLUMNS = (
    "number",
    "task",
    "metric",
    "side",
    "value",
    "standard_error",
    "documents",
    "higher_is_better",
)


def trials_frame(report: "RunReport") -> pd.DataFrame:
    """One row per trial, by its number: what it was, how it ended, its scores, time and place.

    Of a trial that was given up there are no task metrics, since its documents are a part of the
    others'; `scores_frame` has them.
    """
    rows = []
    for record in report.records:
        doubts = "; ".join(report.warnings(record))
        rows.append(
            {
                "number": record.number,
                "name": record.name,
                "baseline": record.baseline,
                "state": record.state,
                "methods": _methods(record),
                "value": record.value,
                "feasible": record.feasible,
                "estimate": record.estimate,
                "pruned": record.pruned,
                "step": record.step,
                "points": report.points(record),
                **_objectives(report, record),
                **_tasks(report, record),
                **{f"{kind} documents": count for kind, count in record.documents.items()},
                "started": record.started,
                "host": record.host,
                "seconds": sum(record.seconds.values()) if record.seconds else None,
                **{f"{phase} seconds": spent for phase, spent in record.seconds.items()},
                "failure": record.failure,
                "warnings": doubts,
            }
        )
    frame = pd.DataFrame(rows).set_index("number")
    return frame.assign(started=pd.to_datetime(frame["started"], utc=True))


def _methods(record: TrialRecord) -> str | None:
    """`ties`, or `slerp, ties`; None for a trial that never began."""
    if record.recipe_text is None:
        return None
    return ", ".join(dict.fromkeys(rule.method for rule in record.recipe.rules))


def _objectives(report: "RunReport", record: TrialRecord) -> dict[str, float]:
    if not (report.goal.several and record.values):
        return {}
    names = (f"{name} value" for name in report.goal.parts)
    return dict(zip(names, record.values, strict=True))


def _tasks(report: "RunReport", record: TrialRecord) -> dict[str, float | None]:
    """Per task: its own metric and standard error on both sides, and how answers ended."""
    row: dict[str, float | None] = {}
    full = () if record.value is None else record.metrics
    chosen = {(metric.task, metric.name): metric for metric in full}
    for task, target in report.goal.points.targets.items():
        found = {
            task: chosen.get((task, target.metric)),
            f"{task} holdout": report.holdout.get(record.number, {}).get(task),
        }
        for name, metric in found.items():
            row[name] = None if metric is None else metric.value
            row[f"{name} error"] = None if metric is None else metric.standard_error
        if (answers := record.answers.get(task)) is not None:
            row |= {f"{task} {share}": getattr(answers, share) for share in SHARES}
    return row


def parameters_frame(report: "RunReport") -> pd.DataFrame:
    """One row per trial, by its number; one column per parameter of the space, as the sampler knows
    it. Empty cells: the trial has none, or not this one."""
    rows = [{"number": record.number, **record.parameters} for record in report.records]
    return pd.DataFrame(rows).set_index("number")


def scores_frame(report: "RunReport") -> pd.DataFrame:
    """One row per trial, side of the split, task and metric: all that was scored, also of trials
    that were given up (`documents` tells how much of the search documents)."""
    rows = [
        row
        for record in report.records
        for side, metrics in (
            ("search", record.metrics),
            ("holdout", report.holdout_scores.get(record.number, ())),
        )
        for row in _score_rows(record.number, side, metrics)
    ]
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def _score_rows(number: int, side: str, metrics: Iterable[Metric]) -> Iterable[Mapping[str, Any]]:
    for metric in metrics:
        yield {
            "number": number,
            "task": metric.task,
            "metric": metric.name,
            "side": side,
            "value": metric.value,
            "standard_error": metric.standard_error,
            "documents": metric.documents,
            "higher_is_better": metric.higher_is_better,
        }


def coefficients_frame(report: "RunReport", number: int) -> pd.DataFrame:
    """One row per rule and source of a trial's recipe: group, method, source, parameters."""
    rows = []
    for rule in report.by_number[number].recipe.rules:
        for source in rule.sources:
            values = {
                name: value[source] if isinstance(value, dict) else value
                for name, value in rule.parameters.items()
            }
            rows.append({"group": rule.label(), "method": rule.method, "source": source, **values})
    return pd.DataFrame(rows)


def whole_frame(report: "RunReport") -> pd.DataFrame:
    """Trials and, as `parameter NAME`, the parameters of the space beside them: for a file."""
    return trials_frame(report).join(parameters_frame(report).add_prefix("parameter "))


def write_frame(frame: pd.DataFrame, path: Path, *, parquet: bool) -> None:
    """Writes Parquet, or CSV; UserError where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside:
            if parquet:
                frame.to_parquet(beside)
            else:
                frame.to_csv(beside)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from error

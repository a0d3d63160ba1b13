"""Trials side by side: paired differences on the documents that both were scored on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from evomerge.dashboard.columns import Vector
from evomerge.dashboard.runs import Run
from evomerge.dashboard.snapshot import Snapshot
from evomerge.errors import UserError
from evomerge.scoring.scorecard import DocumentArrays, read_arrays
from evomerge.searching.intervals import estimate
from evomerge.searching.record import TrialRecord
from evomerge.searching.run_folder import Side

MOST = 6
"""Trials that are compared at a time."""
_REACH = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """One trial of one run."""

    run: Run
    snapshot: Snapshot
    record: TrialRecord
    """With recipe and metrics."""

    @property
    def key(self) -> str:
        """`run/12`, as addresses have it."""
        return f"{self.run.name}/{self.record.number}"

    @property
    def address(self) -> str:
        """Of its page."""
        return f"/run/{self.run.name}/trial/{self.record.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The second trial minus the first, in points of the task's own metric (higher is better)."""

    value: float
    error: float
    """Standard error of the paired difference."""
    gained: int
    """Documents on which the second is better."""
    lost: int
    documents: int
    """That both were scored on."""

    @property
    def low(self) -> float:
        """Lower end of the 95% interval, by a normal distribution."""
        return self.value - _REACH * self.error

    @property
    def high(self) -> float:
        """Upper end."""
        return self.value + _REACH * self.error

    @property
    def shown(self) -> str:
        """better, worse, or nothing where the interval holds zero."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else ""


def arrays_of(chosen: Chosen, side: Side) -> dict[str, DocumentArrays] | None:
    """Task -> scores per document; None where the trial has none on that side."""
    path = chosen.run.folder.documents(side, chosen.record.number)
    return read_arrays(path) if path.exists() else None


def compare(first: Chosen, second: Chosen, side: Side) -> tuple[dict[str, Difference], str]:
    """(task -> difference, and "" -> that of the objective where all its tasks have one; why there
    are none, in words). Differences are on documents of equal numbers; tasks of equal names.

    UserError where two runs ask tasks of one name in different ways.
    """
    _refuse_unlike(first, second)
    ours, theirs = arrays_of(first, side), arrays_of(second, side)
    for chosen, arrays in ((first, ours), (second, theirs)):
        if arrays is None:
            return {}, f"{chosen.key} has no scores per document of the {side} documents"
    assert ours is not None
    assert theirs is not None
    objective = first.snapshot.report.goal.points
    columns = first.snapshot.index.columns
    tables = {}
    for task, key in first.snapshot.tasks.items():
        better = paired(ours.get(task), theirs.get(task), key[1])
        if better is not None and len(better):
            sign = 1.0 if columns.higher_is_better(key) else -1.0
            tables[task] = sign * better[:, None]
    found = {task: _difference({task: table}, {task: 1.0}) for task, table in tables.items()}
    shares = objective.shares()
    if shares.keys() <= tables.keys():
        units = {task: abs(objective.weights()[task]) for task in shares}
        found[""] = _difference({task: tables[task] for task in shares}, units)
    if not found:
        return {}, f"{first.key} and {second.key} share no {side} documents with the tasks' metrics"
    return found, ""


def paired(
    ours: DocumentArrays | None, theirs: DocumentArrays | None, metric: str
) -> Vector | None:
    """[documents]: second minus first on the documents that both have; None without the metric."""
    if ours is None or theirs is None or metric not in ours.values or metric not in theirs.values:
        return None
    _, one, two = np.intersect1d(
        ours.documents, theirs.documents, assume_unique=True, return_indices=True
    )
    better: Vector = theirs.values[metric][two].astype(np.float64) - ours.values[metric][one]
    return better[~np.isnan(better)]


def _difference(
    tables: Mapping[str, Vector],
    shares: Mapping[str, float],
) -> Difference:
    values, errors = estimate(tables, shares)
    return Difference(
        value=100 * float(values[0]),
        error=100 * float(errors[0]),
        gained=sum(int((table > 0).sum()) for table in tables.values()),
        lost=sum(int((table < 0).sum()) for table in tables.values()),
        documents=sum(len(table) for table in tables.values()),
    )


def _refuse_unlike(first: Chosen, second: Chosen) -> None:
    ours, theirs = (each.snapshot.report.tasks for each in (first, second))
    for task in ours.keys() & theirs.keys():
        one, two = ({k: v for k, v in own[task].items() if k != "folder"} for own in (ours, theirs))
        if one != two:
            raise UserError(
                f"task {task!r} is asked differently in {first.run.name} ({one}) and "
                f"{second.run.name} ({two}); expected runs that ask alike"
            )


def recipe_rows(chosen: Sequence[Chosen]) -> list[tuple[str, list[str], bool]]:
    """The recipes aligned: (what, its value in each trial, whether they differ)."""
    cells: list[dict[str, str]] = []
    for each in chosen:
        recipe = each.record.recipe
        own = {"base": recipe.base.path, "seed": str(recipe.seed), "dtype": recipe.dtype}
        for rule in recipe.rules:
            label = rule.label()
            own[f"{label}: method"] = rule.method
            own[f"{label}: sources"] = ", ".join(rule.sources)
            for name, value in rule.parameters.items():
                if isinstance(value, dict):
                    own |= {f"{label}: {name} {s}": f"{v:.4g}" for s, v in value.items()}
                else:
                    own[f"{label}: {name}"] = f"{value:.4g}"
        for place, piece in enumerate(recipe.stack or ()):
            layers = ", ".join(map(str, piece.layers))
            own[f"stack {place}"] = f"{piece.source} {layers} scale {piece.scale:.4g}"
        cells.append(own)
    names = dict.fromkeys(name for own in cells for name in own)
    rows = [(name, [own.get(name, "") for own in cells]) for name in names]
    return [(name, values, len(set(values)) > 1) for name, values in rows]

"""Several objectives: which trials are on the Pareto front, in which order, and which is its knee.

A candidate dominates another that is nowhere better, and somewhere worse. Of candidates of equal
values the first counts.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.searching.objective import Goal
from evomerge.searching.record import TrialRecord

Vector = NDArray[np.float64]


def layers(values: Vector) -> list[list[int]]:
    """Rows of an array [candidates, objectives], front by front: the first is dominated by none,
    the next by none but the first, ...
    """
    left = list(range(len(values)))
    found = []
    while left:
        top = [row for row in left if not any(_above(values, other, row) for other in left)]
        found.append(top)
        left = [row for row in left if row not in set(top)]
    return found


def spread_order(values: Vector) -> list[int]:
    """Rows of a front, the most isolated first: extremes, then by crowding distance (Deb et al.
    2002, NSGA-II, doi 10.1109/4235.996017)."""
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        width = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if width > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / width
    return [int(row) for row in np.argsort(-distance, kind="stable")]


def knee(values: Vector) -> int:
    """The row of a front that lies farthest above the plane between the extremes.

    Each objective is put to 0 at the worst of the front and 1 at the best; of two objectives the
    extremes are then (1, 0) and (0, 1), and the distance from the line between them grows with the
    sum. Of several equal ones (two members always are) that of the highest sum of values as they
    are.
    """
    low, high = values.min(axis=0), values.max(axis=0)
    width = np.where(high > low, high - low, 1.0)
    above = np.round(((values - low) / width).sum(axis=1), 9)
    return int(np.lexsort((-np.arange(len(values)), values.sum(axis=1), above))[-1])


def eligible(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Complete trials of distinct weights that keep all limits, in their order."""
    distinct: dict[str | None, TrialRecord] = {}
    for record in records:
        if record.value is not None and record.feasible:
            distinct.setdefault(record.fingerprint, record)
    return list(distinct.values())


def rank_fronts(records: Sequence[TrialRecord], goal: Goal) -> list[TrialRecord]:
    """Eligible trials front by front, in each the most isolated first.

    For the goal `both`, leaders and baselines whose points are known come first, by their points;
    then the others by the smooth values.
    """
    ranked = by_front(records, {record.number: record.values for record in records})
    values = judged_values(ranked, goal)
    judged = by_front([record for record in ranked if record.number in values], values)
    return [*judged, *(record for record in ranked if record.number not in values)]


def pareto_front(
    records: Iterable[TrialRecord], goal: Goal
) -> tuple[list[TrialRecord], dict[int, tuple[float, ...]]]:
    """The front among the trials that are judged, by the first objective, best first; and trial
    number -> its values of the objectives, of all that are judged."""
    complete = eligible(records)
    ranked = by_front(complete, {record.number: record.values for record in complete})
    values = judged_values(ranked, goal)
    return front_of(ranked, values), values


def judged_values(ranked: Sequence[TrialRecord], goal: Goal) -> dict[int, tuple[float, ...]]:
    """Trial number -> a value for each objective that it is chosen by.

    For the goal `both`, of the first `leaders` and the baselines, as far as these are known.
    """
    found = {
        record.number: tuple(goal.values(goal.judged, record.metrics) or ())
        for place, record in enumerate(ranked)
        if goal.kind != "both" or place < goal.leaders or record.baseline is not None
    }
    return {number: values for number, values in found.items() if values}


def by_front(
    records: Sequence[TrialRecord], values: Mapping[int, tuple[float, ...]]
) -> list[TrialRecord]:
    """The records front by front, in each the most isolated first."""
    if not records:
        return []
    table = np.array([values[record.number] for record in records], dtype=np.float64)
    return [records[layer[row]] for layer in layers(table) for row in spread_order(table[layer])]


def front_of(
    records: Sequence[TrialRecord], values: Mapping[int, tuple[float, ...]]
) -> list[TrialRecord]:
    """The records on the front, by the first objective, best first."""
    known = [record for record in records if record.number in values]
    if not known:
        return []
    table = np.array([values[record.number] for record in known], dtype=np.float64)
    return sorted(
        (known[row] for row in layers(table)[0]), key=lambda record: -values[record.number][0]
    )


def knee_of(records: Sequence[TrialRecord], values: Mapping[int, tuple[float, ...]]) -> TrialRecord:
    """The knee of a front."""
    return records[knee(np.array([values[record.number] for record in records]))]


def _above(values: Vector, one: int, other: int) -> bool:
    if not (values[one] >= values[other]).all():
        return False
    return bool((values[one] > values[other]).any()) or one < other

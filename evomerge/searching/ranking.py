"""Which trials are best on the search documents, and which of them go to the holdout."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from evomerge.searching.front import eligible, pareto_front, rank_fronts
from evomerge.searching.intervals import Scored, estimate, tabulate
from evomerge.searching.objective import Goal
from evomerge.searching.record import TrialRecord
from evomerge.searching.run_folder import RunFolder

_WITHIN_NOISE = NormalDist().inv_cdf(0.95)
"""Standard errors that a candidate may be behind the best one and still be a finalist."""


def rank(records: Sequence[TrialRecord], goal: Goal) -> list[TrialRecord]:
    """Complete trials of distinct weights that keep all limits, the best on the search documents
    first.

    For the goal `both`, leaders and baselines whose points are known come first, best points
    first, equal ones by the smooth value; then the others by the smooth value. Of several
    objectives front by front.
    """
    if goal.several:
        return rank_fronts(eligible(records), goal)
    ranked = sorted(eligible(records), key=lambda r: -(r.value or 0.0))
    if goal.kind != "both":
        return ranked
    points = {
        record.number: goal.points.value_of(record.metrics)
        for place, record in enumerate(ranked)
        if place < goal.leaders or record.baseline is not None
    }
    known = {number: value for number, value in points.items() if value is not None}
    judged = [record for record in ranked if record.number in known]
    judged.sort(key=lambda record: -known[record.number])  # stable: equal ones stay by value
    return [*judged, *(record for record in ranked if record.number not in known)]


def choose_finalists(
    records: Sequence[TrialRecord], goal: Goal, folder: RunFolder, count: int
) -> list[TrialRecord]:
    """At most `count` candidates, best first: those that may be the best, as far as the search
    documents tell.

    The best candidate always is one. Another is where the upper end of the one-sided 95% interval
    of its paired difference to the best trial, be it a baseline, reaches zero: one that was shown
    to be worse would cost holdout documents and widen all intervals for nothing. One whose every
    document has the score of a better finalist's is left out as well: it would tell nothing new.
    Of several objectives they are the first of the front.
    """
    ranked = rank(records, goal)
    if goal.several:
        return ranked[: min(count, len(pareto_front(records, goal)[0]))]
    found: list[TrialRecord] = []
    seen: list[Scored] = []
    best = _scored_on_search(ranked[0], goal, folder) if ranked else None
    for record in ranked:
        if len(found) == count:
            break
        if record.baseline is not None:
            continue
        scored = _scored_on_search(record, goal, folder)
        if scored is None or best is None:
            break  # its points are not known: those of all behind it are not either
        if not found or (
            _may_be_best(scored, best, goal)
            and not any(_same_scores(scored, other, goal) for other in seen)
        ):
            found.append(record)
            seen.append(scored)
    return found


def _scored_on_search(record: TrialRecord, goal: Goal, folder: RunFolder) -> Scored | None:
    metrics = goal.judged.found(record.metrics)
    if metrics is None:
        return None
    return Scored(metrics=metrics, documents=folder.scores("search", record.number))


def _may_be_best(scored: Scored, best: Scored, goal: Goal) -> bool:
    tables = tabulate([(scored, best)], goal.judged)
    if tables is None:  # no mean over documents: nothing is known of its noise
        return True
    value, error = estimate(tables, goal.judged.shares())
    return bool(value[0] + _WITHIN_NOISE * error[0] >= 0)


def _same_scores(scored: Scored, other: Scored, goal: Goal) -> bool:
    return all(
        np.array_equal(
            scored.documents[task].values[target.metric],
            other.documents[task].values[target.metric],
            equal_nan=True,
        )
        for task, target in goal.judged.targets.items()
    )

"""Limits that a candidate has to keep: a trial that breaks one never wins.

A limit concerns a task's own metric, whatever is climbed. Its violation, in the metric's own unit,
is what samplers are told: not above 0 where the limit is kept.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import isnan
from typing import Literal

from evomerge.errors import CandidateError
from evomerge.scoring.scorecard import Metric

LimitKind = Literal["at_least", "at_most", "below_base"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A limit to one task's metric."""

    task: str
    metric: str
    """"metric,filter", as in the scorecard."""
    kind: LimitKind
    """below_base: so many points worse than the base at most."""
    amount: float
    """In the metric's own unit; of below_base in points, its hundredths."""
    base: float | None = None
    """The base's metric on the search documents; None before it was scored."""

    @property
    def settled(self) -> bool:
        """Whether all is known that decides whether it is kept."""
        return self.kind != "below_base" or self.base is not None

    def with_base(self, value: float | None) -> "Constraint":
        """The same, once the base has this metric."""
        return replace(self, base=value)

    def limit(self, higher_is_better: bool) -> float:
        """The metric's least value, or the highest where the limit is from above."""
        if self.kind != "below_base":
            return self.amount
        assert self.base is not None, "the base is scored before limits are asked for"
        return self.base - (1 if higher_is_better else -1) * self.amount / 100

    def from_above(self, higher_is_better: bool) -> bool:
        """Whether the metric may not be above the limit, rather than not below."""
        return self.kind == "at_most" or (self.kind == "below_base" and not higher_is_better)

    def violation(self, metric: Metric) -> float:
        """By how much the limit is missed, in the metric's own unit; 0 or less: it is kept."""
        over = metric.value - self.limit(metric.higher_is_better)
        # Base and candidate of equal scores must not differ in the last digit.
        return round(over if self.from_above(metric.higher_is_better) else -over, 12)

    def sentence(self) -> str:
        """`safety at most 1 point below the base`, `notes at most 1.2`."""
        if self.kind != "below_base":
            return f"{self.task} {self.kind.replace('_', ' ')} {self.amount:g}"
        points = f"{abs(self.amount):g} point{'' if abs(self.amount) == 1 else 's'}"
        if self.amount < 0:
            return f"{self.task} at least {points} above the base"
        return f"{self.task} at most {points} below the base"


def violations(
    constraints: Iterable[Constraint], metrics: Iterable[Metric]
) -> dict[str, float] | None:
    """Task -> violation; None where a constrained metric was not scored, or is no number."""
    known = {(metric.task, metric.name): metric for metric in metrics}
    found = {}
    for constraint in constraints:
        metric = known.get((constraint.task, constraint.metric))
        if metric is None or isnan(metric.value):
            return None
        found[constraint.task] = constraint.violation(metric)
    return found


def check_measured(constraints: Iterable[Constraint], metrics: Iterable[Metric]) -> None:
    """CandidateError where a constrained metric is no number."""
    known = {(metric.task, metric.name): metric.value for metric in metrics}
    for constraint in constraints:
        if isnan(known[constraint.task, constraint.metric]):
            raise CandidateError(
                f"{constraint.metric} of task {constraint.task!r}, which is under constraint, is "
                "no number for this candidate"
            )


def broken_text(found: Mapping[str, float]) -> str:
    """`breaks safety by 2.1 points`; nothing where all limits are kept."""
    words = [f"{task} by {100 * amount:.2g} points" for task, amount in found.items() if amount > 0]
    return f"breaks {' and '.join(words)}" if words else ""

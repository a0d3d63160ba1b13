"""Does the winner keep the limits on documents that the search never saw?

A limit that was kept on the search documents may have been kept by luck. On the holdout it is
looked at once more, below_base against the base there, with the paired interval of the verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna

from evomerge.recipe import BASE
from evomerge.searching.constraints import Constraint
from evomerge.searching.finalists import scored_on_holdout
from evomerge.searching.objective import Goal, Objective, Target
from evomerge.searching.record import read_trials
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.verdict import Scored, paired_gain

LIMITS = "limits_on_holdout"
"""Study attribute: what `check_limits` found of the winner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldLimit:
    """One limit of the winner on the holdout documents."""

    trial: int
    limit: str
    """In words."""
    value: float
    """The winner's metric there."""
    violation: float
    """In the metric's unit; not above 0: it is kept there too."""
    worst: float | None
    """The violation at the bad end of the 95% interval; None where none can be computed."""

    def sentence(self) -> str:
        """`safety at most 1 points below the base: kept on the holdout (60.5 there), ...`."""
        where = f"{self.limit}: {'broken' if self.violation > 0 else 'kept'} on the holdout"
        text = f"{where}, with {100 * abs(self.violation):.1f} points "
        text += "too much" if self.violation > 0 else "to spare"
        if self.violation <= 0 and self.worst is not None and self.worst > 0:
            text += f"; not for certain: the 95% interval ends {100 * self.worst:.1f} points beyond"
        return text


def check_limits(
    study: optuna.Study, folder: RunFolder, goal: Goal, winners: Sequence[int], seed: int
) -> list[HeldLimit]:
    """How the winners keep each limit on the holdout documents; recorded in the study."""
    if not goal.constraints:
        return []
    scored = scored_on_holdout(study, folder, goal.points)
    bases = [record.number for record in read_trials(study) if record.baseline == BASE]
    base = next((scored[number] for number in bases if number in scored), None)
    found = [
        limit
        for winner in winners
        for constraint in goal.constraints
        if (limit := _held(constraint, winner, scored[winner], base, seed)) is not None
    ]
    study.set_user_attr(LIMITS, [asdict(limit) for limit in found])
    return found


def read_limits(attributes: Mapping[str, Any]) -> list[HeldLimit]:
    """What `check_limits` recorded; nothing before a run's end, or without constraints."""
    return [HeldLimit(**row) for row in attributes.get(LIMITS, ())]


def _held(
    constraint: Constraint, trial: int, winner: Scored, base: Scored | None, seed: int
) -> HeldLimit | None:
    """None where the base was not scored there, and the limit is relative to it."""
    task, metric = constraint.task, winner.metrics[constraint.task]
    if constraint.kind != "below_base":
        error = metric.standard_error
        violation = constraint.violation(metric)
        worst = None if error is None else violation + 1.96 * error
    elif base is None:
        return None
    else:
        there = replace(constraint, base=base.metrics[task].value)
        violation = there.violation(metric)
        alone = Objective(targets={task: Target(metric=constraint.metric)})
        gain = paired_gain(winner, base, alone, seed)
        worst = None if gain.low is None else violation + gain.value - gain.low
    return HeldLimit(
        trial=trial,
        limit=constraint.sentence(),
        value=metric.value,
        violation=violation,
        worst=worst,
    )

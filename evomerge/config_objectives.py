"""What of a configuration says what is best: its objectives, and the limits that a winner keeps."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from evomerge.config_tasks import TaskConfig
from evomerge.errors import did_you_mean
from evomerge.searching.constraints import LimitKind


def read_objectives(value: Any) -> Any:
    """[gsm8k, safety]: each an objective of its own; or names: lists of tasks."""
    if value is None:
        return {}
    if isinstance(value, list) and all(isinstance(task, str) for task in value):
        return {task: [task] for task in value}
    return value


ObjectivesField = Annotated[
    dict[str, Annotated[tuple[str, ...], Field(min_length=1)]], BeforeValidator(read_objectives)
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstraintConfig:
    """A limit to one task's metric: one of these."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    below_base: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    def given(self) -> dict[LimitKind, float]:
        """The limits that are set."""
        limits: dict[LimitKind, float | None] = {
            "below_base": self.below_base,
            "at_least": self.at_least,
            "at_most": self.at_most,
        }
        return {kind: amount for kind, amount in limits.items() if amount is not None}


def objective_problems(
    objectives: Mapping[str, tuple[str, ...]],
    constraints: Mapping[str, ConstraintConfig],
    tasks: Mapping[str, TaskConfig | None],
) -> Iterator[str]:
    """Mistakes that show when objectives, constraints and tasks are seen together."""
    weights = {name: (task or TaskConfig()).weight for name, task in tasks.items()}
    if not any(weights.values()):
        yield "tasks: every weight is 0; expected one above 0 at least"
    for name, constraint in constraints.items():
        if len(constraint.given()) != 1:
            yield (
                f"constraints.{name}: expected one of below_base (points), at_least, at_most, got "
                f"{constraint.given() or 'none'}"
            )
    if len(objectives) == 1:
        yield "objectives: expected two or more; for one, leave the key out"
    listed = [task for own in objectives.values() for task in own]
    for name, own in objectives.items():
        for task in own:
            if task not in tasks:
                yield f"objectives.{name}: {task!r}: {did_you_mean(task, tasks)}"
            elif listed.count(task) > 1:
                yield f"objectives.{name}: {task!r} stands in several places"
            elif not weights[task]:
                yield f"objectives.{name}: {task!r} has weight 0, so it cannot count"

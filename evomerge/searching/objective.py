"""What a search climbs and what it is judged by: a weighted mean of the tasks' chosen metrics."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from evomerge.errors import UserError
from evomerge.scoring.scorecard import SMOOTH, Metric, Scorecard
from evomerge.scoring.scorer import KINDS, Kind
from evomerge.searching.constraints import Constraint

GoalKind = Literal["metric", "smooth", "both"]
Normalise = Literal["raw", "share", "spread"]
DEFAULT_GOAL: GoalKind = "both"
Unit = Literal["points", "nats", "share", "spread"]
"""Points: percent of the tasks' own metrics. Nats: of a log-probability. Share: of the gains of the
best sources over the base. Spread: of the largest distances of a source from the base."""
UNIT_NAMES: Mapping[Unit, str] = {
    "points": "points",
    "nats": "nats",
    "share": "% of gain",
    "spread": "% of spread",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What counts of one task."""

    metric: str
    """"metric,filter", as in the scorecard."""
    weight: float = 1.0
    """0: it is scored, and may be constrained, but does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How a metric enters the objective: as (±value - zero) / unit."""

    zero: float = 0.0
    unit: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Higher is better: metrics of which less is better enter negated."""

    targets: Mapping[str, Target]
    """Task -> what counts of it."""
    scales: Mapping[str, Scale] = field(default_factory=dict)
    """Task -> scale; empty: the metrics enter as they are."""
    normalise: Normalise = "raw"
    """What the scales are."""

    def value(self, metrics: Mapping[str, Metric]) -> float:
        """Σ weight · (±value - zero) / unit / Σ weight, from task -> metric."""
        return sum(
            share * self.scaled(metrics[task], metrics[task].value)
            for task, share in self.shares().items()
        )

    def scaled(self, metric: Metric, value: float) -> float:
        """A value of that task's metric as it enters the objective."""
        zero = self.scales[metric.task].zero if self.scales else 0.0
        return ((value if metric.higher_is_better else -value) - zero) / self._unit(metric.task)

    def slope(self, metric: Metric) -> float:
        """By how much the task's term grows with the metric: ±1 / unit."""
        return (1.0 if metric.higher_is_better else -1.0) / self._unit(metric.task)

    def _unit(self, task: str) -> float:
        return self.scales[task].unit if self.scales else 1.0

    def shares(self) -> dict[str, float]:
        """Task that counts -> its share of the objective; they sum to 1."""
        counting = {task: target.weight for task, target in self.targets.items() if target.weight}
        total = sum(counting.values())
        return {task: weight / total for task, weight in counting.items()}

    def weights(self) -> dict[str, float]:
        """Task that counts -> by how much the objective grows with its metric, or falls where less
        is better."""
        return {task: share / self._unit(task) for task, share in self.shares().items()}

    def metrics(self, scorecard: Scorecard) -> dict[str, Metric]:
        """Task -> the metric that counts; KeyError where one was not scored."""
        return {
            task: scorecard.metric(task, target.metric) for task, target in self.targets.items()
        }

    def found(self, metrics: Iterable[Metric]) -> dict[str, Metric] | None:
        """Task -> the metric that counts; None where one was not scored."""
        known = {(metric.task, metric.name): metric for metric in metrics}
        wanted = {task: (task, target.metric) for task, target in self.targets.items()}
        if not all(key in known for key in wanted.values()):
            return None
        return {task: known[key] for task, key in wanted.items()}

    def value_of(self, metrics: Iterable[Metric]) -> float | None:
        """The value of a candidate with these metrics; None where one was not scored."""
        found = self.found(metrics)
        return None if found is None else self.value(found)

    def only(self, tasks: Iterable[str]) -> "Objective":
        """Of these tasks alone."""
        return replace(self, targets={task: self.targets[task] for task in tasks})

    def smooth(self) -> "Objective":
        """The same tasks and weights, but of each task that counts its smooth metric."""
        return Objective(
            targets={
                task: Target(metric=SMOOTH, weight=self.targets[task].weight)
                for task in self.shares()
            }
        )

    @property
    def unit(self) -> Unit:
        """Of its values."""
        if self.normalise != "raw":
            return self.normalise
        smooth = all(target.metric == SMOOTH for target in self.targets.values())
        return "nats" if smooth else "points"


def amount(value: float, unit: Unit, *, sign: bool = False, digits: int = 1) -> str:
    """`61.2 points`, `-0.412 nats`, `83.1 % of spread`; sign: also before positive values.

    digits: of points and percent.
    """
    plus = "+" if sign else ""
    number = f"{value:{plus}.3f}" if unit == "nats" else f"{100 * value:{plus}.{digits}f}"
    return f"{number} {UNIT_NAMES[unit]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What the trials of a search are scored on, and how its winner is found.

    metric: trials climb the tasks' metrics, and the best wins. smooth: they climb the smooth
    metrics, without generating answers, and the best wins. both: they climb the smooth metrics,
    and of the leaders the best by the tasks' metrics wins. The verdict is always by the tasks' own
    metrics, in the objective's units, on the holdout documents.
    """

    kind: GoalKind
    points: Objective
    """Of the tasks' own metrics."""
    reason: str = ""
    """Why this kind."""
    leaders: int = 8
    """How many of the best by the smooth metrics are compared by the tasks' own, for `both`."""
    normalise: Normalise = "raw"
    """share, spread: metrics count by their distance from the base, in units of the best source's
    gain, or of the largest distance of a source."""
    normalise_reason: str = ""
    smooth_scales: Mapping[str, Scale] = field(default_factory=dict)
    """Task -> scale of its smooth metric; empty as `points.scales` are."""
    constraints: tuple[Constraint, ...] = ()
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Several objectives: name -> its tasks. Empty: one, of all tasks."""

    @property
    def several(self) -> bool:
        """Whether there is a front of best trials rather than one best trial."""
        return bool(self.parts)

    def split(self, objective: Objective) -> dict[str, Objective]:
        """Name -> that objective of the tasks of each part."""
        counting = objective.shares()
        return {
            name: objective.only(task for task in tasks if task in counting)
            for name, tasks in self.parts.items()
        }

    def values(self, objective: Objective, metrics: Iterable[Metric]) -> list[float] | None:
        """One value for each part; None where a metric was not scored."""
        found = objective.found(metrics)
        return None if found is None else [p.value(found) for p in self.split(objective).values()]

    @property
    def climbed(self) -> Objective:
        """What trials are told to the sampler by."""
        if self.kind == "metric":
            return self.points
        smooth = self.points.smooth()
        return replace(smooth, scales=self.smooth_scales, normalise=self.points.normalise)

    @property
    def settled(self) -> bool:
        """Whether values can be told: they may depend on what base and sources score."""
        scaled = self.normalise == "raw" or bool(self.points.scales)
        return scaled and all(constraint.settled for constraint in self.constraints)

    @property
    def trial_kinds(self) -> frozenset[Kind]:
        """What a trial is scored on; base and sources alone are scored on both kinds."""
        return frozenset({"metric"}) if self.kind == "metric" else frozenset({"smooth"})

    @property
    def holdout_kinds(self) -> frozenset[Kind]:
        """The metrics, and what the winner's optimism is told in."""
        return KINDS if self.kind == "smooth" else frozenset({"metric"})

    @property
    def judged(self) -> Objective:
        """What the winner is chosen by on the search documents."""
        return self.climbed if self.kind == "smooth" else self.points

    def text(self, value: float, metrics: Iterable[Metric], *, digits: int = 1) -> str:
        """A trial's value, and its points where they are known beside it; of several objectives
        each one's value, in points where they are known."""
        if self.parts:
            return self._text_of_parts(list(metrics), digits)
        points = None if self.kind == "metric" else self.points.value_of(metrics)
        words = [] if points is None else [amount(points, self.points.unit, digits=digits)]
        smooth = "smooth " if words and self.normalise != "raw" else ""
        return ", ".join([*words, smooth + amount(value, self.climbed.unit, digits=digits)])

    def _text_of_parts(self, metrics: list[Metric], digits: int) -> str:
        shown = self.points if self.values(self.points, metrics) is not None else self.climbed
        parts = zip(self.split(shown).items(), self.values(shown, metrics) or [], strict=True)
        return ", ".join(f"{n} {amount(v, part.unit, digits=digits)}" for (n, part), v in parts)

    def facts(self) -> dict[str, Any]:
        """What a study keeps of it, beside the points' targets."""
        return {
            "kind": self.kind,
            "reason": self.reason,
            "leaders": self.leaders,
            "normalise": self.normalise,
            "normalise_reason": self.normalise_reason,
            "parts": self.parts,
        }


def choose_goal(
    wanted: GoalKind | None,
    points: Objective,
    smooth: Callable[[str], str | None],
    finalists: int,
    default: GoalKind = DEFAULT_GOAL,
) -> Goal:
    """The goal that was asked for, or `default`.

    smooth: task -> the name of its smooth metric, or None. UserError where a task has none and one
    was asked for; the default gives way to `metric` then.
    """
    kind = wanted or default
    reason = "as configured" if wanted else "the default"
    lacking = [task for task in points.shares() if smooth(task) is None]
    if kind != "metric" and lacking:
        names = ", ".join(map(repr, lacking))
        if wanted is not None:
            raise UserError(
                f"objective: {wanted}: needs a reference in every task's documents, and there is "
                f"none in {names}; leave that task out, or use `objective: metric`"
            )
        kind, reason = "metric", f"no reference in the documents of {names}"
    return Goal(kind=kind, points=points, reason=reason, leaders=max(8, 3 * finalists))

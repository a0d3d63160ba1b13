"""One number from a scorecard: the weighted mean of the tasks' chosen metrics."""

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.scoring.scorecard import Metric, Scorecard


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What counts of one task."""

    metric: str
    """"metric,filter", as in the scorecard."""
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Higher is better: metrics of which less is better enter negated."""

    targets: Mapping[str, Target]
    """Task -> what counts of it."""

    def value(self, metrics: Mapping[str, Metric]) -> float:
        """Σ weight · ±value / Σ weight, from task -> metric."""
        return sum(
            share * (1 if metrics[task].higher_is_better else -1) * metrics[task].value
            for task, share in self.shares().items()
        )

    def shares(self) -> dict[str, float]:
        """Task -> its share of the objective; they sum to 1."""
        total = sum(target.weight for target in self.targets.values())
        return {task: target.weight / total for task, target in self.targets.items()}

    def metrics(self, scorecard: Scorecard) -> dict[str, Metric]:
        """Task -> the metric that counts."""
        return {
            task: scorecard.metric(task, target.metric) for task, target in self.targets.items()
        }

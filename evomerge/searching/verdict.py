"""Does the winner beat the best plain merge on documents that the search never saw?

The gain is the difference of the objective on the holdout documents. Its interval is a paired
bootstrap (Efron and Tibshirani 1993, chapter 13): documents are drawn with replacement within each
task, the same ones for both candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.scoring.scorecard import DocumentScores, Metric
from evomerge.searching.objective import Objective, Unit, amount

_RESAMPLES = 10_000
_LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A difference of objectives, in the objective's unit, with its 95% interval."""

    value: float
    low: float | None
    """None, as `high`, where a metric is no mean over documents, so none can be computed."""
    high: float | None
    unit: Unit = "points"

    @property
    def shown(self) -> bool:
        """Whether the interval lies above zero."""
        return self.low is not None and self.low > 0

    def sentence(self) -> str:
        """In the objective's unit: `+2.1 points (95% interval +0.3 to +3.9)`."""
        text = amount(self.value, self.unit, sign=True)
        if self.low is None or self.high is None:
            return f"{text} (no interval: a metric is not a mean over documents)"
        return f"{text} (95% interval {100 * self.low:+.1f} to {100 * self.high:+.1f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One candidate's scores on one side of the split."""

    metrics: Mapping[str, Metric]
    """Task -> the metric that counts."""
    documents: Mapping[str, DocumentScores]


def paired_gain(ours: Scored, theirs: Scored, objective: Objective, seed: int) -> Gain:
    """The gain of `ours` over `theirs`, scored on the same documents."""
    value = objective.value(ours.metrics) - objective.value(theirs.metrics)
    generator = np.random.default_rng(seed)
    total = np.zeros(_RESAMPLES)
    for task, share in objective.shares().items():
        name = objective.targets[task].metric
        first = np.array(ours.documents[task].values[name], dtype=np.float64)
        second = np.array(theirs.documents[task].values[name], dtype=np.float64)
        if not (is_mean(first, ours.metrics[task]) and is_mean(second, theirs.metrics[task])):
            return Gain(value=value, low=None, high=None, unit=objective.unit)
        difference = first - second
        # Drawn row by row: a matrix of all resamples would need gigabytes for large tasks.
        means = [
            difference[generator.integers(0, len(difference), len(difference))].mean()
            for _ in range(_RESAMPLES)
        ]
        total += share * objective.slope(ours.metrics[task]) * np.array(means)
    tail = 100 * (1 - _LEVEL) / 2
    low, high = np.percentile(total, [tail, 100 - tail])
    return Gain(value=value, low=float(low), high=float(high), unit=objective.unit)


def is_mean(values: Any, metric: Metric) -> bool:
    """Whether the task's metric is the mean of its documents' values."""
    return bool(np.isclose(values.mean(), metric.value, rtol=1e-4, atol=1e-6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a run ended."""

    winner: int
    """Trial number; chosen on the search documents."""
    opponent: int
    """The baseline that did best on the holdout: the hardest one to beat."""
    gain: Gain
    optimism: float
    """The winner's objective on the search documents minus that on the holdout."""
    optimism_unit: Unit = "points"
    """Nats where only the smooth metrics were scored on both sides."""

    def sentence(self, winner: str, opponent: str) -> str:
        """The verdict in plain words."""
        if self.winner == self.opponent:
            return f"No candidate did better than the baseline {opponent}: it is the winner."
        if self.gain.shown:
            return f"{winner} beats the best plain merge ({opponent}) by {self.gain.sentence()}."
        return (
            f"No difference shown between {winner} and the best plain merge ({opponent}): "
            f"{self.gain.sentence()}."
        )

    def optimism_text(self) -> str:
        """`+2.1 points`, or `+0.031 nats`."""
        return amount(self.optimism, self.optimism_unit, sign=True)

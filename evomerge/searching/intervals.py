"""How sure differences between candidates are that were scored on the same documents.

The difference of two objectives is the weighted sum of the tasks' mean differences per document,
d = Σ share · m, with the standard error e = sqrt(Σ share² · s² / n) of a stratified sample. Its
interval is a symmetric bootstrap-t (Hall 1988, Annals of Statistics 16, 927-953): documents are
drawn with replacement within each task, the same ones for every pair; d and e are computed anew,
and the interval is d ± q · e, where q is a quantile of |d* - d| / e*. Where several differences are
judged together, q is one of the largest of them (max-t; Romano and Wolf 2005, Econometrica 73,
1237-1282): then all intervals hold at once with the stated probability, however alike the
candidates are, and whichever of them is looked at afterwards.

In s² of a task one more document is imagined, which differs as much as any document does, and q is
never less than a normal distribution's. Without these, few documents that differ would look like
certainty, for resamples of them hardly stray.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.scoring.scorecard import DocumentScores, Metric
from evomerge.searching.objective import Objective, Target, Unit, amount

RESAMPLES = 10_000
LEVEL = 0.95
_CELLS = 2**22  # of a chunk of resamples times documents: 32 MiB
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One candidate's scores on one side of the split."""

    metrics: Mapping[str, Metric]
    """Task -> the metric that counts."""
    documents: Mapping[str, DocumentScores]


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

    @property
    def loss_shown(self) -> bool:
        """Whether the interval lies below zero."""
        return self.high is not None and self.high < 0

    def sentence(self) -> str:
        """In the objective's unit: `+2.1 points (95% interval +0.3 to +3.9)`."""
        text = amount(self.value, self.unit, sign=True)
        if self.low is None or self.high is None:
            return f"{text} (no interval: a metric is not a mean over documents)"
        return f"{text} (95% interval {100 * self.low:+.1f} to {100 * self.high:+.1f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """Differences of several pairs on the same documents, and how far resamples strayed."""

    values: Matrix
    """[pairs]: Σ share · mean difference."""
    errors: Matrix
    """[pairs]: their standard errors."""
    draws: Matrix
    """[resamples, pairs]: |d* - d| / e*; 0 where e* is."""

    def together(self, level: float = LEVEL) -> list[Gain]:
        """Intervals that all hold at once with the probability `level`."""
        reach = self._reach(np.quantile(self.draws.max(1), level), level)
        return self._gains(reach, reach)

    def each(self, level: float = LEVEL) -> list[Gain]:
        """Intervals of which each holds with the probability `level`."""
        reach = self._reach(np.quantile(self.draws, level, axis=0), level)
        return self._gains(reach, reach)

    def over_best(self, rivals: int, level: float = LEVEL) -> list[Gain]:
        """The gain of each finalist over the best of its rivals, whichever is best in truth; the
        intervals hold for all finalists at once with the probability `level`.

        The pairs are every finalist beside every rival: [finalists * rivals]. The gain over the
        best rival is the smallest of a finalist's gains. So it is not above the smallest of their
        upper ends, where these hold at once for all pairs; and not below the smallest lower end,
        for which that of the best rival must hold, but need not hold for others: there, q is
        corrected for the finalists, and the largest over the rivals.
        """
        grid = self.draws.reshape(len(self.draws), -1, rivals)
        one_rival = np.quantile(grid.max(1), level, axis=0).max()
        down = self._reach(one_rival, level)
        up = self._reach(np.quantile(self.draws.max(1), level), level)
        found = self._gains(down, up)
        return [_least(found[start : start + rivals]) for start in range(0, len(found), rivals)]

    def _reach(self, quantile: Any, level: float) -> Matrix:
        """[pairs]: q standard errors."""
        reach: Matrix = np.maximum(quantile, NormalDist().inv_cdf((1 + level) / 2)) * self.errors
        return reach

    def _gains(self, down: Matrix, up: Matrix) -> list[Gain]:
        rows = zip(self.values, self.values - down, self.values + up, strict=True)
        return [Gain(value=float(v), low=float(a), high=float(b)) for v, a, b in rows]


def _least(found: Sequence[Gain]) -> Gain:
    low = min(gain.low for gain in found if gain.low is not None)
    high = min(gain.high for gain in found if gain.high is not None)
    return Gain(value=min(gain.value for gain in found), low=low, high=high)


def resample(
    tables: Mapping[str, Matrix],
    shares: Mapping[str, float],
    seed: int,
    resamples: int = RESAMPLES,
) -> Differences:
    """The differences of all pairs, and their bootstrap.

    tables: task -> [documents, pairs], how much better the first of each pair is on each document.
    """
    generator = np.random.default_rng(seed)
    pairs = next(iter(tables.values())).shape[1]
    means, variances = np.zeros((resamples, pairs)), np.zeros((resamples, pairs))
    for task, table in tables.items():
        count = len(table)
        mean, imagined = table.mean(0), _imagined(table)
        rows = max(1, _CELLS // count)
        for start in range(0, resamples, rows):
            part = slice(start, min(start + rows, resamples))
            size = part.stop - part.start
            places = generator.integers(0, count, (size, count))
            places += count * np.arange(size)[:, None]
            weights = np.bincount(places.ravel(), minlength=size * count).reshape(size, count)
            drawn = weights @ table / count
            squares = count * np.maximum(weights @ table**2 / count - drawn**2, 0) + imagined
            means[part] += shares[task] * (drawn - mean)
            variances[part] += shares[task] ** 2 * squares / (count * max(1, count - 1))
    values, errors = estimate(tables, shares)
    # In place: with many pairs these are the largest arrays.
    np.sqrt(variances, out=variances)
    np.abs(means, out=means)
    draws = np.divide(means, variances, out=means, where=variances > 0)
    return Differences(values=values, errors=errors, draws=draws)


def estimate(tables: Mapping[str, Matrix], shares: Mapping[str, float]) -> tuple[Matrix, Matrix]:
    """The differences of all pairs, and their standard errors, each [pairs]; `tables` as above."""
    value, variance = 0.0, 0.0
    for task, table in tables.items():
        count = len(table)
        squares = ((table - table.mean(0)) ** 2).sum(0) + _imagined(table)
        value = value + shares[task] * table.mean(0)
        variance = variance + shares[task] ** 2 * squares / (count * max(1, count - 1))
    return np.asarray(value), np.sqrt(variance)


def _imagined(table: Matrix) -> Matrix:
    """[pairs]: what the imagined document adds to the sum of squares.

    Where a pair differs on no document, the smallest difference that another pair shows.
    """
    sizes = np.abs(table)
    smallest = sizes[sizes > 0].min(initial=np.inf)
    largest = sizes.max(0)
    found: Matrix = np.where(largest > 0, largest, 0 if np.isinf(smallest) else smallest) ** 2
    return found


def tabulate(
    pairs: Sequence[tuple[Scored, Scored]], objective: Objective
) -> dict[str, Matrix] | None:
    """Task that counts -> [documents, pairs], how much better the first of each pair is on each
    document, as the objective counts it; None where a metric is not the mean of its documents'
    values, so that it has no interval here.
    """
    tables = {}
    for task in objective.shares():
        name = objective.targets[task].metric
        columns = []
        for pair in pairs:
            values = [np.array(one.documents[task].values[name]) for one in pair]
            metrics = [one.metrics[task] for one in pair]
            if not all(map(is_mean, values, metrics)):
                return None
            columns.append(objective.slope(metrics[0]) * (values[0] - values[1]))
        tables[task] = np.array(columns, dtype=np.float64).T
    return tables


def is_mean(values: Any, metric: Metric) -> bool:
    """Whether the task's metric is the mean of its documents' values."""
    return bool(np.isclose(values.mean(), metric.value, rtol=1e-4, atol=1e-6))


def gains_over_best(
    finalists: Sequence[Scored], rivals: Sequence[Scored], objective: Objective, seed: int
) -> list[Gain]:
    """The gain of each finalist over the best rival, as `Differences.over_best` says."""
    tables = tabulate([(one, other) for one in finalists for other in rivals], objective)
    if tables is None:
        best = max(objective.value(rival.metrics) for rival in rivals)
        values = [objective.value(one.metrics) - best for one in finalists]
        return [Gain(value=v, low=None, high=None, unit=objective.unit) for v in values]
    found = resample(tables, objective.shares(), seed).over_best(len(rivals))
    return [replace(gain, unit=objective.unit) for gain in found]


def paired_gain(ours: Scored, theirs: Scored, objective: Objective, seed: int) -> Gain:
    """The gain of one candidate over one other that was not chosen among several."""
    return gains_over_best([ours], [theirs], objective, seed)[0]


def gains_by_task(ours: Scored, theirs: Scored, objective: Objective, seed: int) -> dict[str, Gain]:
    """Task -> the gain there in its own metric; the intervals hold for all tasks at once.

    Tasks share no documents, so each has its interval at the level 0.95 ** (1 / tasks) (Šidák
    1967). A task whose metric is no mean over documents has none.
    """
    level = LEVEL ** (1 / len(objective.targets))
    found = {}
    for task, target in objective.targets.items():
        alone = Objective(targets={task: Target(metric=target.metric)})
        table = tabulate([(ours, theirs)], alone)
        if table is not None:
            (gain,) = resample(table, alone.shares(), seed).each(level)
        else:
            value = alone.value(ours.metrics) - alone.value(theirs.metrics)
            gain = Gain(value=value, low=None, high=None)
        found[task] = replace(gain, unit=alone.unit)
    return found

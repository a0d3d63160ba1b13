"""Early stopping: a trial is scored block by block, and given up where it cannot win any more.

Race: per document, the trial is compared with the incumbent, the best trial that was scored in
full. The documents so far are a stratified sample without replacement of the N search documents,
so the difference on all N is estimated by the weighted sum of the tasks' mean differences, with
the standard error sqrt(Σ share² · s²/n · (1 - n/N)) (Cochran 1977, Sampling Techniques, section
5.6). The trial is pruned where even the upper end of the one-sided interval, at a level shared out
over the looks (Bonferroni), is below zero: it would not beat the incumbent on all N documents.

Halving: asynchronous successive halving (Li et al. 2020, arXiv 1810.05934). After 1/η, 1/η², ...
of the documents a trial behind the incumbent goes on only if it is among the best 1/η of all trials
there. A rank among others on the same documents needs no incumbent: it would be subtracted from all
of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.scoring.scorecard import DocumentScores, Metric
from evomerge.scoring.scorer import Documents
from evomerge.searching.objective import Objective, amount
from evomerge.searching.verdict import is_mean

Reason = Literal["race", "halving"]
Scores = Mapping[str, DocumentScores]
"""Task -> its scores per document."""
Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStopping:
    """When a trial is given up."""

    level: float = 0.05
    """Bound of the probability that the race prunes a trial which would beat the incumbent."""
    halving: int | Literal[False] = 4
    """η; False: no halving."""
    minimum: int = 20
    """Documents in a block at least, all tasks together; so also before the first decision."""
    blocks: int = 8
    """At most."""

    def count(self, documents: int) -> int:
        """How many blocks so many documents make; 1: nothing can be stopped early."""
        return max(1, min(self.blocks, documents // self.minimum))

    def rungs(self, count: int) -> frozenset[int]:
        """After how many of `count` blocks halving decides."""
        found: set[int] = set()
        share = count / self.halving if self.halving else 0.0
        while share >= 1:
            found.add(round(share))
            share /= self.halving
        return frozenset(found)

    def sentence(self, documents: int) -> str:
        """In words, for a run with so many search documents."""
        count = self.count(documents)
        if count == 1:
            return f"off: {documents} search documents are less than two blocks of {self.minimum}"
        rungs = ", ".join(f"{rung}/{count}" for rung in sorted(self.rungs(count)))
        halving = f"; halving by {self.halving} after {rungs} of them" if rungs else ""
        return (
            f"{count} blocks of documents; race against the best trial at {self.level:g}{halving}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Incumbent:
    """The best complete trial: whom the others race against."""

    number: int
    value: float
    """Of the objective that is climbed, on all search documents."""
    metrics: Mapping[str, Metric]
    """Task -> the metric that counts."""
    scores: Scores
    """Of all search documents, as `read_documents` gives them: rounded to float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far a candidate is above the incumbent, as far as its documents tell."""

    value: float
    """Estimate of what it will be on all search documents."""
    error: float
    """Its standard error; 0 once all documents are scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Why and where a trial was given up."""

    reason: Reason
    against: int
    """Number of the incumbent."""
    estimate: float
    """Of its value on all search documents: the incumbent's value and the estimated difference."""
    documents: int
    """Scored, of all tasks together."""
    share: float
    """Of all search documents."""
    sentence: str


def difference(scores: Scores, incumbent: Incumbent, objective: Objective) -> Difference | None:
    """The paired difference to the incumbent; None before every task has two documents.

    Documents without a value (NaN) do not count. In the standard error one more document is
    imagined, which speaks for the candidate as strongly as any seen so far speaks for either:
    without it, few documents of equal difference would look like certainty.
    """
    value = variance = 0.0
    for task, share in objective.shares().items():
        if task not in scores:
            return None
        name, theirs = objective.targets[task].metric, incumbent.scores[task]
        places = np.searchsorted(theirs.documents, scores[task].documents)
        # Rounded like the kept scores: equal ones must differ by nothing.
        own = np.array(scores[task].values[name], dtype=np.float32).astype(np.float64)
        others = np.array(theirs.values[name], dtype=np.float64)
        gains = objective.slope(incumbent.metrics[task]) * (own - others[places])
        gains = gains[~np.isnan(gains)]
        seen, total = len(gains), int((~np.isnan(others)).sum())
        if seen < 2:
            return None
        mean = gains.mean()
        squares = ((gains - mean) ** 2).sum() + (np.abs(gains).max() - mean) ** 2
        value += share * mean
        variance += share**2 * squares / (seen * (seen - 1)) * max(0.0, 1 - seen / total)
    return Difference(value=float(value), error=sqrt(variance))


class Racing:
    """What all races of a run share: the blocks, and how trials did at every rung."""

    def __init__(
        self, rules: EarlyStopping, objective: Objective, blocks: Sequence[Documents]
    ) -> None:
        """objective: what is climbed. blocks: in the order in which they are scored."""
        self.rules = rules
        self.objective = objective
        self.blocks = blocks
        self._rungs: dict[int, dict[int, float]] = {n: {} for n in rules.rungs(len(blocks))}

    def add(self, trial: int, scores: Scores, metrics: Mapping[str, Metric]) -> None:
        """Remembers how a finished trial did at each rung that it reached."""
        for rung, values in self._rungs.items():
            value = self._value(scores, metrics, self.blocks[:rung])
            if value is not None:
                values[trial] = value

    def race(self, incumbent: Incumbent) -> "Race":
        """A new trial's race."""
        return Race(self, incumbent)

    def refusal(self, incumbent: Incumbent) -> str | None:
        """Why nothing can be told from a part of the documents; None where it can."""
        for task in self.objective.shares():
            metric = self.objective.targets[task].metric
            values = np.array(incumbent.scores[task].values[metric], dtype=np.float64)
            if not is_mean(values[~np.isnan(values)], incumbent.metrics[task]):
                return f"{metric} of task {task!r} is not a mean over documents"
        return None

    def falls_behind(self, rung: int, scores: Scores, incumbent: Incumbent) -> bool:
        """Whether a trial is not among the best 1/η of all that reached the rung, itself included.

        Never before there are η of them, and at no other place than a rung.
        """
        if rung not in self._rungs:
            return False
        others = self._rungs[rung].values()
        own = self._value(scores, incumbent.metrics, self.blocks[:rung])
        count, eta = len(others) + 1, int(self.rules.halving)
        if own is None or count < eta:
            return False
        return sum(value > own for value in others) >= count // eta

    def _value(
        self, scores: Scores, metrics: Mapping[str, Metric], blocks: Sequence[Documents]
    ) -> float | None:
        """The objective on the documents of these blocks; None where they are not all scored."""
        total = 0.0
        for task, share in self.objective.shares().items():
            wanted = [number for block in blocks for number in block.get(task, ())]
            if task not in scores or not wanted:
                return None
            places = np.searchsorted(scores[task].documents, sorted(wanted))
            known = np.array([*scores[task].documents, -1])
            if not np.array_equal(known[places], sorted(wanted)):
                return None
            values: Any = scores[task].values[self.objective.targets[task].metric]
            chosen = np.array(values, dtype=np.float32).astype(np.float64)[places]
            total += share * self.objective.scaled(metrics[task], float(np.nanmean(chosen)))
        return total


class Race:
    """One trial's race: asked after each block whether the next one is worth its cost."""

    def __init__(self, racing: Racing, incumbent: Incumbent) -> None:
        self._racing = racing
        self._incumbent = incumbent
        self._done = 0
        self.stop: Stop | None = None
        """Set where the trial was given up."""

    def go_on(self, scores: Scores) -> bool:
        """Whether to score the next block; after the last one, always."""
        self._done += 1
        racing, incumbent = self._racing, self._incumbent
        looks = len(racing.blocks) - 1
        found = difference(scores, incumbent, racing.objective)
        if self._done > looks or found is None:
            return True
        unit = racing.objective.unit
        quantile = -NormalDist().inv_cdf(racing.rules.level / looks)
        upper = found.value + quantile * found.error
        seen = sum(len(own.documents) for own in scores.values())
        after = f"after {seen} documents"
        below = f"{amount(found.value, unit, sign=True)} to trial {incumbent.number}"
        if upper < 0:
            best = amount(upper, unit, sign=True)
            self._give_up("race", found, seen, f"{after}: {below}, at best {best}")
        elif found.value < 0 and racing.falls_behind(self._done, scores, incumbent):
            eta = racing.rules.halving
            self._give_up("halving", found, seen, f"{after}: not in the best 1/{eta}, {below}")
        return self.stop is None

    def _give_up(self, reason: Reason, found: Difference, seen: int, sentence: str) -> None:
        total = sum(len(own.documents) for own in self._incumbent.scores.values())
        self.stop = Stop(
            reason=reason,
            against=self._incumbent.number,
            estimate=self._incumbent.value + found.value,
            documents=seen,
            share=seen / total,
            sentence=sentence,
        )

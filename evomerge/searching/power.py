"""What a search's documents can show: said before the night, when it can still be changed.

The interval of a gain reaches q standard errors below it, so a gain of (q + 0.84) standard errors
is shown with a probability of 80 % (Cohen 1988, Statistical Power Analysis, chapter 2). On the
holdout, q is that of the verdict: corrected for the number of finalists, here as if these were
equally good and their scores independent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import NormalDist

import numpy as np

from evomerge.searching.intervals import LEVEL, Scored, tabulate
from evomerge.searching.objective import Objective

POWER = 0.8
HOPED = 0.02
"""2 points: about as much as the best of some hundred noisy scores is too high by chance alone, so
that a smaller gain cannot be told from luck without the holdout, and few would merge for it."""
_INDEPENDENT = sqrt(0.5)
"""Bound of the standard deviation of a difference of two scores between 0 and 1, where the two are
not negatively correlated: each has a variance of at most 1/4."""
_BOUNDED = ("acc", "acc_norm", "exact_match", "mc1", "mc2", "f1", "em")
_DRAWS = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Which gains the documents show, in the objective's unit."""

    holdout_gain: float
    """The smallest that the verdict would show with 80 % power."""
    search_gain: float
    """The smallest between two candidates that search documents tell apart with 80 % power."""
    holdout_documents: int
    probed: bool
    """Whether the noise was seen in a probe, or bounded."""

    @property
    def needed(self) -> int:
        """Holdout documents that would show HOPED, of all tasks together, in these proportions."""
        return ceil(self.holdout_documents * (self.holdout_gain / HOPED) ** 2)

    def sentence(self) -> str:
        """Both gains, and how they are known."""
        how = "from a probe" if self.probed else "at most, by a bound of the noise"
        return (
            f"the holdout shows a gain of {100 * self.holdout_gain:.1f} points or more with 80 % "
            f"power, the search documents tell candidates {100 * self.search_gain:.1f} points "
            f"apart ({how})"
        )

    def warning(self) -> str | None:
        """Where a gain of HOPED would not be shown: what would show it."""
        if self.holdout_gain <= HOPED:
            return None
        return (
            f"a gain of {100 * HOPED:g} points would probably not be shown: that needs about "
            f"{_rounded(self.needed)} holdout documents, and there are {self.holdout_documents}; "
            "raise limits, add documents or tasks"
        )


def power(
    deviations: Mapping[str, float],
    shares: Mapping[str, float],
    search: Mapping[str, int],
    holdout: Mapping[str, int],
    finalists: int,
    *,
    probed: bool,
) -> Power:
    """deviations: task -> standard deviation per document of the difference of two candidates.

    search, holdout: task -> documents.
    """

    def error(counts: Mapping[str, int]) -> float:
        return sqrt(sum((shares[t] * deviations[t]) ** 2 / counts[t] for t in shares))

    reach = NormalDist().inv_cdf(POWER)
    alone = NormalDist().inv_cdf((1 + LEVEL) / 2)
    return Power(
        holdout_gain=(critical_value(finalists) + reach) * error(holdout),
        search_gain=(alone + reach) * error(search),
        holdout_documents=sum(holdout.values()),
        probed=probed,
    )


def critical_value(finalists: int) -> float:
    """The 95% quantile of the largest of |x - y| / √2 over `finalists` numbers x, all of them and y
    standard normal: the correction for so many finalists beside one rival (Dunnett 1955).
    """
    generator = np.random.default_rng(0)
    apart = generator.standard_normal((_DRAWS, finalists)) - generator.standard_normal((_DRAWS, 1))
    return float(np.quantile(np.abs(apart).max(1) / sqrt(2), LEVEL))


def deviations(objective: Objective, pair: tuple[Scored, Scored] | None) -> dict[str, float] | None:
    """Task -> standard deviation per document of the difference of two candidates.

    pair: two candidates on a few documents, of which one more is imagined that differs as much as
    any; None: nothing was scored, and the noise is bounded. None where that is impossible.
    """
    tables = None if pair is None else tabulate([pair], objective)
    if pair is not None and tables is None:
        return None
    found = {}
    for task, target in objective.targets.items():
        bounded = target.metric.partition(",")[0] in _BOUNDED
        if tables is None:
            if not bounded:
                return None
            found[task] = _INDEPENDENT
            continue
        seen = tables[task][:, 0]
        imagined = 1.0 if bounded else float(np.abs(seen).max())
        squares = ((seen - seen.mean()) ** 2).sum() + imagined**2
        found[task] = sqrt(squares / len(seen))
    return found


def _rounded(count: int) -> str:
    """Two digits say enough."""
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return f"{round(count / unit) * unit:,}"

"""A plateau: what is tried differs by less than its documents can tell.

The last 40 candidates are compared, document by document, with the best trial before them. It is a
plateau where none was shown to be better (one-sided, at 5 % over all 40, Bonferroni), and where
their estimates spread no more than the standard error of a difference: then the order among them is
mostly chance, and more trials of the kind choose luck. Baselines, steps along the gradient and
repeats of scored weights do not count.

The spread is the interquartile range over 1.349, which a few wild proposals do not change, and the
error is the median one; a plateau is left only where the spread is a quarter above the error, so
that it is not told anew with every trial. Both are on what is climbed. The errors are those of
documents beyond the search's own: on these themselves a difference is what it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from statistics import NormalDist, median
from typing import Any

import numpy as np

from evomerge.scoring.scorecard import DocumentScores
from evomerge.searching.objective import Goal, Objective, Unit, amount
from evomerge.searching.racing import Difference, Incumbent, difference, refusal
from evomerge.searching.record import TrialRecord
from evomerge.searching.run_folder import RunFolder

PLATEAU = "plateau"
"""Study attribute: the plateau that the search is on, or None once it has left it."""
WINDOW = 40
"""Candidates: about three generations of CMA-ES in 20 dimensions, and enough for a spread."""
_LEVEL = 0.05
_SLACK = 1.25
Read = Callable[[int], Mapping[str, DocumentScores]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plateau:
    """Since when, and how flat."""

    since: int
    """Number of its first trial."""
    trials: int
    """Candidates on it."""
    spread: float
    """Standard deviation of the estimates, robust."""
    noise: float
    """Median standard error of a candidate's difference to the best trial before."""
    unit: Unit

    def short(self) -> str:
        """For the progress line."""
        return f"plateau for {self.trials} trials"

    def sentence(self) -> str:
        """With the figures, and what can be done."""
        spread, noise = (amount(value, self.unit) for value in (self.spread, self.noise))
        return (
            f"Plateau: since trial {self.since} no candidate was shown to be better than the best "
            f"before, and the last ones differ by {spread} (standard deviation), no more than the "
            f"{noise} of noise in a difference. More trials of this kind would choose by luck; "
            "more documents, other methods or another space may tell more."
        )


def find_plateau(
    records: Sequence[TrialRecord],
    objective: Objective,
    read: Read,
    window: int = WINDOW,
    *,
    slack: float = 1.0,
) -> Plateau | None:
    """The plateau on which the last `window` candidates lie; None where it is none, or where that
    cannot be told yet. records: by number; read: number -> scores per search document. slack: times
    the noise, up to which the spread may be.
    """
    last = _candidates(records)[-window:]
    before = [
        record
        for record in records
        if record.value is not None and record.feasible and last and record.number < last[0].number
    ]
    if len(last) < window or not before:
        return None
    best = max(before, key=lambda record: record.value or 0.0)
    metrics = objective.found(best.metrics)
    if metrics is None:
        return None
    incumbent = Incumbent(
        number=best.number, value=best.value or 0.0, metrics=metrics, scores=read(best.number)
    )
    if refusal(incumbent, objective) is not None:
        return None
    above = [difference(read(r.number), incumbent, objective, beyond=True) for r in last]
    known = [each for each in above if each is not None]
    if len(known) < window or any(_is_shown(each, window) for each in known):
        return None
    low, high = np.quantile([each.value for each in known], [0.25, 0.75])
    spread, noise = float(high - low) / 1.349, median(each.error for each in known)
    if spread > slack * noise:
        return None
    return Plateau(
        since=last[0].number, trials=window, spread=spread, noise=noise, unit=objective.unit
    )


def _candidates(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    return [
        record
        for record in records
        if record.baseline is None
        and record.share is not None
        and record.state in ("complete", "pruned")
    ]


def _is_shown(above: Difference, window: int) -> bool:
    quantile = NormalDist().inv_cdf(1 - _LEVEL / window)
    return above.value > quantile * above.error


class PlateauWatch:
    """Looks for a plateau after every trial."""

    def __init__(
        self, folder: RunFolder, goal: Goal, records: Sequence[TrialRecord], stored: Any = None
    ) -> None:
        """records: of trials before this process. stored: what the study kept of a plateau."""
        self.goal = goal
        """What it becomes once base and sources are scored, if values depend on these."""
        self._records = list(records)
        self._read: Read = lru_cache(maxsize=4 * WINDOW)(
            lambda number: folder.scores("search", number)
        )
        self.plateau = read_plateau(stored)
        self._look()

    def add(self, record: TrialRecord) -> bool:
        """Looks again; whether the search came onto a plateau, or left one."""
        before = self.plateau
        self._records.append(record)
        self._look()
        return (before is None) != (self.plateau is None)

    def _look(self) -> None:
        if self.goal.several or not self.goal.settled:
            return
        slack = 1.0 if self.plateau is None else _SLACK
        found = find_plateau(self._records, self.goal.climbed, self._read, slack=slack)
        if found is not None and self.plateau is not None:
            since = self.plateau.since
            count = sum(record.number >= since for record in _candidates(self._records))
            found = replace(found, since=since, trials=count)
        self.plateau = found

    def to_json(self) -> dict[str, Any] | None:
        """As a study keeps it."""
        return None if self.plateau is None else asdict(self.plateau)


def read_plateau(stored: Any) -> Plateau | None:
    """What `to_json` wrote; None too for a run that never looked."""
    return None if stored is None else Plateau(**stored)

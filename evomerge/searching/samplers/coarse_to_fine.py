"""A (1+1)-ES on several levels: steps that tie the numbers along the depth, and finer ones where
these pay.

At the first level all numbers of a parameter (of a source) move by one amount, at the second those
of each half of the depth, at the third of each quarter, and so on to single groups. Each level has
a step of its own by the success rule. A level is tried in proportion to what its last trials gained
on average (probability matching, Thierens 2005), coarse ones first: a split that improves nothing
is tried seldom, and the search goes down by itself as coarse steps stop to gain. All proposals are
points of the fine space. Of noise and pruned trials, see `Climb`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.searching.samplers.climb import Climb, levels_of, sparse, stretches_at
from evomerge.searching.samplers.coordinates import Coordinates, Past, Point, better

_MEMORY = 0.8  # of a level's mean gain, kept at each of its trials
_ALWAYS = 0.1  # share of trials that are spread evenly over the levels


class CoarseToFine:
    """For numbers, and categories, which change with a small probability. Its notes: the level."""

    def __init__(self, coordinates: Coordinates) -> None:
        self._families = coordinates.families()
        levels = max((levels_of(family) for family in self._families), default=1)
        self._climbs = [Climb(coordinates) for _ in range(levels)]
        self._gains: list[float | None] = [None] * levels

    def learn(self, past: Past) -> None:
        """A success becomes every level's best trial, and its gain speaks for its own level."""
        best = self._climbs[0].best
        success = better(past, best)
        for level, climb in enumerate(self._climbs):
            if past.mark == level:
                climb.learn(past)
                gain = max(0.0, best.loss - past.loss) if success and best is not None else 0.0
                known = self._gains[level]
                self._gains[level] = (
                    gain if known is None else _MEMORY * known + (1 - _MEMORY) * gain
                )
            elif success:
                climb.best = past

    def propose(
        self, random: np.random.Generator, under_way: Sequence[Point] = ()
    ) -> tuple[Point, Any]:
        """A step at a level that has paid, or is not known yet."""
        level = int(random.choice(len(self._climbs), p=self._shares()))
        climb = self._climbs[level]
        stretches = [
            family[np.arange(len(family)) * count // len(family) == part]
            for family in self._families
            for count in [stretches_at(level, family)]
            for part in range(count)
        ]
        move = np.zeros_like(climb.place.numbers)
        for places, height in zip(stretches, sparse(random, len(stretches)), strict=True):
            move[places] = height
        return climb.moved(move, random), level

    def _shares(self) -> list[float]:
        """[levels], the probability of each. One that was never tried counts as the best known."""
        known = [gain for gain in self._gains if gain is not None]
        hope = max(known, default=0.0) or 1.0
        gains = [hope if gain is None else gain for gain in self._gains]
        first = 2.0 ** -np.arange(len(gains)) if not known else np.array(gains)
        total = first.sum()
        even = np.full(len(gains), 1 / len(gains))
        shares = even if total == 0 else _ALWAYS * even + (1 - _ALWAYS) * first / total
        return [float(share) for share in shares]

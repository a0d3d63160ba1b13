"""CMA-ES (Hansen, arXiv 1604.00772; package `cmaes`), started from the best trial before it.

It learns from the order of the losses within a generation alone. Noise reorders neighbours, which
the mean over the better half evens out; a pruned trial takes the place of its estimate, and is
rarely among the better half. Under constraints, those that break limits rank last, by how much.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from cmaes import CMA, SepCMA

from evomerge.searching.samplers.coordinates import Coordinates, Past, Point, better, losses

_SEPARABLE = 60  # parameters above which the covariance matrix is kept diagonal
_STEP = 1 / 6  # initial standard deviation, as a share of each range


class CmaEs:
    """For spaces of numbers. Its notes: the generation of a proposal."""

    def __init__(self, coordinates: Coordinates) -> None:
        self._coordinates = coordinates
        self._best: Past | None = None
        """Of the trials before its own first one."""
        self._optimiser: CMA | SepCMA | None = None
        self._told: list[Past] = []

    def learn(self, past: Past) -> None:
        """The distribution moves whenever own trials are as many as a generation has. With several
        workers some of these were drawn before it moved last; they count all the same."""
        if past.mark is None:
            if self._optimiser is None and better(past, self._best):
                self._best = past
            return
        optimiser = self._optimiser or self._begin()
        self._told.append(past)
        if len(self._told) == optimiser.population_size:
            points = [member.point.numbers for member in self._told]
            optimiser.tell(list(zip(points, losses(self._told), strict=True)))
            self._told = []

    def propose(
        self, random: np.random.Generator, under_way: Sequence[Point] = ()
    ) -> tuple[Point, Any]:
        """One draw from the distribution that the full generations have shaped."""
        optimiser = self._optimiser or self._begin()
        optimiser.reseed_rng(int(random.integers(2**32)))
        numbers = optimiser.ask()
        return Point(numbers=numbers, choices=np.zeros(0, np.int64)), optimiser.generation

    def _begin(self) -> CMA | SepCMA:
        start = self._coordinates.middle() if self._best is None else self._best.point
        mean = np.clip(start.numbers, 0.0, 1.0)
        bounds = np.tile([0.0, 1.0], (len(mean), 1))
        kind = SepCMA if len(mean) > _SEPARABLE else CMA
        self._optimiser = kind(mean=mean, sigma=_STEP, bounds=bounds)
        return self._optimiser

"""CMA-ES (Hansen, arXiv 1604.00772; package `cmaes`), started from the best trial before it.

It learns from the order of the losses within a generation alone. Noise reorders neighbours, which
the mean over the better half evens out; a pruned trial takes the place of its estimate, and is
rarely among the better half. Under constraints, those that break limits rank last, by how much.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from cmaes import CMA, SepCMA

from evomerge.searching.samplers.coordinates import Past, Point, losses
from evomerge.searching.samplers.generations import Generations

_SEPARABLE = 60  # parameters above which the covariance matrix is kept diagonal
_STEP = 1 / 6  # initial standard deviation, as a share of each range


class CmaEs(Generations[CMA | SepCMA]):
    """For spaces of numbers. Its notes: the generation of a proposal."""

    def propose(
        self, random: np.random.Generator, under_way: Sequence[Point] = ()
    ) -> tuple[Point, Any]:
        """One draw from the distribution that the full generations have shaped."""
        optimiser = self.optimiser()
        optimiser.reseed_rng(int(random.integers(2**32)))
        numbers = optimiser.ask()
        return Point(numbers=numbers, choices=np.zeros(0, np.int64)), optimiser.generation

    def _begin(self, start: Point) -> CMA | SepCMA:
        mean = np.clip(start.numbers, 0.0, 1.0)
        bounds = np.tile([0.0, 1.0], (len(mean), 1))
        kind = SepCMA if len(mean) > _SEPARABLE else CMA
        return kind(mean=mean, sigma=_STEP, bounds=bounds)

    def _generation(self, told: Sequence[Past]) -> list[tuple[Any, float]]:
        return list(zip((past.point.numbers for past in told), losses(told), strict=True))

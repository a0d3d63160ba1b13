"""CatCMA with margin (Hamano et al. 2025, arXiv 2504.07884; package `cmaes`): CMA-ES for mixed
spaces, started from the best trial before it.

Numbers are drawn from a normal distribution, stepped ones rounded with a margin that keeps them
from freezing; each category is drawn from a distribution of its own. Like CMA-ES it learns from the
order of the losses within a generation alone, pruned trials by their estimates, and those that
break limits last, by how much.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from cmaes import CatCMAwM
from numpy.typing import NDArray

from evomerge.searching.samplers.coordinates import Coordinates, Past, Places, Point, losses
from evomerge.searching.samplers.generations import Generations

_STEP = 1 / 6  # initial standard deviation, as a share of each range
_TRUST = 0.5  # initial probability of the best trial's categories; the rest is spread evenly


class CatCma(Generations[CatCMAwM]):
    """For numbers, stepped or not, and categories.

    Its notes: the generation of a proposal, and its numbers as drawn, before they were rounded and
    put inside their bounds.
    """

    def __init__(self, coordinates: Coordinates) -> None:
        super().__init__(coordinates)
        stepped = [kind.step is not None for kind in coordinates.numbers.values()]
        # CatCMAwM wants the continuous numbers first.
        self._order = np.argsort(stepped, kind="stable")
        self._continuous = len(stepped) - sum(stepped)
        self._most = int(coordinates.counts.max(initial=0))

    def propose(
        self, random: np.random.Generator, under_way: Sequence[Point] = ()
    ) -> tuple[Point, Any]:
        """One draw from the distributions that the full generations have shaped."""
        optimiser = self.optimiser()
        optimiser.reseed_rng(int(random.integers(2**32)))
        drawn = optimiser.ask()
        raw = [] if drawn._v_raw is None else drawn._v_raw.tolist()
        ordered = [part for part in (drawn.x, drawn.z) if part is not None]
        numbers = np.empty(len(self._order))
        numbers[self._order] = np.concatenate(ordered) if ordered else 0.0
        choices = np.zeros(0, np.int64) if drawn.c is None else drawn.c.argmax(axis=1)
        return Point(numbers=numbers, choices=choices), [optimiser.generation, raw]

    def _solution(self, point: Point, raw: list[float]) -> CatCMAwM.Solution:
        ordered = point.numbers[self._order]
        return CatCMAwM.Solution(
            x=ordered[: self._continuous],
            z=ordered[self._continuous :],
            c=self._one_hot(point.choices),
            _v_raw=np.array(raw),
        )

    def _begin(self, start: Point) -> CatCMAwM:
        space = self._coordinates
        kinds = list(space.numbers.values())
        grids = [
            np.linspace(0.0, 1.0, round((kind.high - kind.low) / kind.step) + 1)
            for kind in (kinds[place] for place in self._order[self._continuous :])
            if kind.step is not None
        ]
        even = (np.arange(self._most) < space.counts[:, None]) / space.counts[:, None]
        categories = _TRUST * self._one_hot(start.choices) + (1 - _TRUST) * even
        return CatCMAwM(
            x_space=[[0.0, 1.0]] * self._continuous or None,
            z_space=grids or None,
            c_space=space.counts.tolist() or None,
            mean=np.clip(start.numbers, 0.0, 1.0)[self._order],
            sigma=_STEP,
            cov=np.eye(len(kinds)),
            cat_param=categories if len(space.counts) else None,
        )

    def _generation(self, told: Sequence[Past]) -> list[tuple[Any, float]]:
        solutions = (self._solution(past.point, past.mark[1]) for past in told)
        return list(zip(solutions, _apart(losses(told)), strict=True))

    def _one_hot(self, choices: Places) -> NDArray[np.bool_]:
        """[categories, most choices]."""
        found: NDArray[np.bool_] = np.arange(self._most) == choices[:, None]
        return found


def _apart(ranked: list[float]) -> list[float]:
    """The same with ties broken in their order: cmaes 0.13 divides by the spread of the losses."""
    scale = 1e-12 * max(1.0, *(abs(loss) for loss in ranked))
    return [loss + number * scale for number, loss in enumerate(ranked)]

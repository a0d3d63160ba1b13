"""(1+1)-ES with a success rule (Rechenberg 1973): each proposal is a step from the best trial.

Of noise and pruned trials, see `Climb`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.searching.samplers.climb import Climb, sparse
from evomerge.searching.samplers.coordinates import Coordinates, Past, Point


class EvolutionStrategy:
    """For numbers, and categories, which change with a small probability. Its notes: the step."""

    def __init__(self, coordinates: Coordinates) -> None:
        self._climb = Climb(coordinates)

    def learn(self, past: Past) -> None:
        """A success becomes the best trial and makes the step longer."""
        self._climb.learn(past)

    def propose(
        self, random: np.random.Generator, under_way: Sequence[Point] = ()
    ) -> tuple[Point, Any]:
        """A step in about a third of the numbers."""
        move = sparse(random, len(self._climb.place.numbers))
        return self._climb.moved(move, random), self._climb.step

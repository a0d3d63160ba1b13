"""What samplers share that move a distribution by generations of their own trials."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from evomerge.searching.samplers.coordinates import Coordinates, Past, Point, better

Optimiser = TypeVar("Optimiser", bound=Any)


class Generations(ABC, Generic[Optimiser]):
    """Starts from the best trial before its own first one. A trial is its own if it has a note."""

    def __init__(self, coordinates: Coordinates) -> None:
        self._coordinates = coordinates
        self._best: Past | None = None
        """Of the trials before its own first one."""
        self._optimiser: Optimiser | None = None
        self._told: list[Past] = []

    def learn(self, past: Past) -> None:
        """The distribution moves whenever own trials are as many as a generation has. With several
        workers some of these were drawn before it moved last; they count all the same."""
        if past.mark is None:
            if self._optimiser is None and better(past, self._best):
                self._best = past
            return
        optimiser = self.optimiser()
        self._told.append(past)
        if len(self._told) == optimiser.population_size:
            optimiser.tell(self._generation(self._told))
            self._told = []

    def optimiser(self) -> Optimiser:
        """Begun when it is first needed."""
        if self._optimiser is None:
            best = self._best
            start = self._coordinates.middle() if best is None else best.point
            self._optimiser = self._begin(start)
        return self._optimiser

    @abstractmethod
    def _begin(self, start: Point) -> Optimiser: ...

    @abstractmethod
    def _generation(self, told: Sequence[Past]) -> list[tuple[Any, float]]:
        """Each trial's place, as the optimiser knows it, and loss."""

"""The space as vectors, and the finished trials as points in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

Vector = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A place in the space."""

    numbers: Vector
    """[numbers], each 0 at the lower end of its range and 1 at the upper one."""
    choices: Places
    """[categories], the place of each in its list of choices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """A finished trial."""

    number: int
    point: Point
    loss: float
    """Less is better; of a pruned trial, its estimate."""
    broken: float = 0.0
    """By how much limits (constraints) are broken, all together."""
    estimated: bool = False
    """Whether it was pruned, so that its loss is an estimate."""
    mark: Any
    """What the sampler noted when it proposed the trial; None: it is not the sampler's own."""


class Coordinates:
    """A space of numbers and categories as vectors."""

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.numbers = {k: d for k, d in space.items() if isinstance(d, FloatDistribution)}
        self.categories = {k: d for k, d in space.items() if isinstance(d, CategoricalDistribution)}
        self._low = np.array([kind.low for kind in self.numbers.values()])
        self._width = np.array([kind.high for kind in self.numbers.values()]) - self._low
        self.counts = np.array([len(k.choices) for k in self.categories.values()], dtype=np.int64)
        """[categories], how many choices there are."""

    def families(self) -> list[Places]:
        """The places of the numbers that are one parameter (of one source) along the depth.

        Such names differ in what stands before the first slash: `layers 0/weight/x`.
        """
        found: dict[str, list[int]] = {}
        for place, name in enumerate(self.numbers):
            found.setdefault(name.partition("/")[2], []).append(place)
        return [np.array(places, dtype=np.int64) for places in found.values()]

    def point(self, parameters: Mapping[str, Any]) -> Point:
        """Where parameters lie."""
        numbers = np.array([parameters[name] for name in self.numbers], dtype=np.float64)
        choices = [kind.choices.index(parameters[n]) for n, kind in self.categories.items()]
        return Point(
            numbers=(numbers - self._low) / self._width, choices=np.array(choices, dtype=np.int64)
        )

    def parameters(self, point: Point) -> dict[str, Any]:
        """The nearest parameters that the space has."""
        values = (self._low + point.numbers * self._width).tolist()
        found: dict[str, Any] = {
            name: _on_grid(value, kind)
            for (name, kind), value in zip(self.numbers.items(), values, strict=True)
        }
        for (name, kind), place in zip(self.categories.items(), point.choices, strict=True):
            found[name] = kind.choices[int(place)]
        return found

    def middle(self) -> Point:
        """The middle of every range, and every first choice."""
        return Point(numbers=np.full(len(self.numbers), 0.5), choices=np.zeros_like(self.counts))


def better(past: Past, best: Past | None) -> bool:
    """Whether a trial was scored in full and is better than the best one so far.

    Those that keep all limits come before those that break one, and these by how much (Deb 2000,
    doi 10.1016/S0045-7825(99)00389-8). An estimate is never the best: of many it would be the
    luckiest.
    """
    return not past.estimated and (
        best is None or (past.broken, past.loss) < (best.broken, best.loss)
    )


def losses(trials: Sequence[Past]) -> list[float]:
    """One number each, in the order that `better` describes: the loss where no limit is broken."""
    worst = max((past.loss for past in trials if not past.broken), default=0.0)
    order = sorted({(past.broken, past.loss) for past in trials if past.broken})
    return [
        worst + 1 + order.index((past.broken, past.loss)) if past.broken else past.loss
        for past in trials
    ]


def _on_grid(value: float, kind: FloatDistribution) -> float:
    """The nearest value that the parameter may take."""
    if kind.step is not None:
        value = round(kind.low + round((value - kind.low) / kind.step) * kind.step, 10)
    return min(max(value, kind.low), kind.high)

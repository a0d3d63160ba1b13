"""The state of a (1+1) evolution strategy: the best trial, and how far a step goes from it.

The step grows with every success and shrinks with every failure, so that one in five succeeds
(Rechenberg's rule, in the form of Kern et al. 2004). A success is a complete trial that is better
than the best one on the same documents, so that what all candidates share of the documents' luck
cancels; a pruned trial is never one, whatever its estimate (nor is a step along the gradient, which
sees a part of the documents).
What the best trial owes to luck on these documents stays; only fresh ones can tell.
"""

from collections.abc import Sequence

import numpy as np

from evomerge.searching.samplers.coordinates import Coordinates, Past, Places, Point, Vector, better

_FIRST = 0.1  # of each range
_LEAST, _MOST = 0.005, 0.5
_GROWTH = 1.5
_FAILURES = 4  # that undo one success
_SHARE = 0.3  # of the numbers that a step changes


class Climb:
    """Rebuilt from the finished trials, own (with a mark) and others."""

    def __init__(self, coordinates: Coordinates) -> None:
        self._coordinates = coordinates
        self.best: Past | None = None
        self.step = _FIRST

    def learn(self, past: Past) -> bool:
        """Takes in a trial; whether it is the best so far."""
        success = better(past, self.best)
        if past.mark is not None:
            factor = _GROWTH if success else _GROWTH ** (-1 / _FAILURES)
            self.step = min(max(self.step * factor, _LEAST), _MOST)
        if success:
            self.best = past
        return success

    @property
    def place(self) -> Point:
        """The best trial's, or the middle of the space before there is one."""
        return self._coordinates.middle() if self.best is None else self.best.point

    def moved(self, move: Vector, random: np.random.Generator) -> Point:
        """The best point plus `move` times the step, with each category drawn anew with a small
        probability: one of them on average, and never most of them."""
        counts = self._coordinates.counts
        anew = random.random(len(counts)) < 1 / (len(counts) + 1)
        return Point(
            numbers=np.clip(self.place.numbers + self.step * move, 0.0, 1.0),
            choices=np.where(anew, random.integers(counts), self.place.choices)
            if len(counts)
            else self.place.choices,
        )


def sparse(random: np.random.Generator, numbers: int) -> Vector:
    """A normal step in some of the coordinates, of length about sqrt(numbers)."""
    chosen = random.random(numbers) < _SHARE
    if numbers:
        chosen[random.integers(numbers)] = True
    move: Vector = np.where(chosen, random.standard_normal(numbers), 0.0) / np.sqrt(_SHARE)
    return move


def tied(random: np.random.Generator, families: Sequence[Places], numbers: int) -> Vector:
    """A sparse step in which each family moves in a few stretches along the depth: one, two, four
    or so, up to all its numbers apart."""
    move = np.zeros(numbers)
    moving = sparse(random, len(families))
    for family, size in zip(families, moving, strict=True):
        if size == 0.0:
            continue
        stretches = stretches_at(int(random.integers(levels_of(family))), family)
        which = np.arange(len(family)) * stretches // len(family)
        heights = random.standard_normal(stretches)
        move[family] = heights[which] / np.sqrt(_SHARE)
    return move


def levels_of(family: Places) -> int:
    """How often a family can be halved, and once more: 1, 2, 4, ... stretches, up to all apart."""
    return (len(family) - 1).bit_length() + 1


def stretches_at(level: int, family: Places) -> int:
    """Into how many stretches a family is cut at a level."""
    return min(1 << level, len(family))

"""A local Gaussian process that picks the most hopeful of many steps from the best trial.

In the manner of TuRBO (Eriksson et al. 2019, arXiv 1910.01739): the region is the reach of a
(1+1)-ES's step, by its success rule; the model is fitted to the trials nearest to the best one. Its
length scale and noise are those of the highest marginal likelihood on a small grid, so that a
proposal costs some tens of milliseconds at any number of parameters.

The model takes noise into account: it smooths over values, and a pruned trial's estimate enters
like any other value. Very bad values are cut off, for how bad they are says little near the best.
Which trial is the best is decided without the model, as in `Climb`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.searching.samplers.climb import Climb, sparse, tied
from evomerge.searching.samplers.coordinates import Coordinates, Past, Point, Vector, losses

_CANDIDATES = 100
_TIED = 0.5  # of them move along the depth
_NEAREST = 200  # trials that the model is fitted to
_FEWEST = 6  # trials before there is a model
_CATEGORY = 0.25  # squared distance of two choices, where a whole range has 1
_SCALES = (0.1, 0.2, 0.4, 0.8, 1.6)  # length scales, in units of the root of the dimensions
_NOISES = (1e-4, 1e-2, 1e-1)  # variance, as a share of the signal's
_WORST = 2.0  # losses above the median are cut off at this many times its distance to the best
_OPTIMISM = 1.0  # standard deviations that are granted to a candidate

Matrix = NDArray[np.float64]


class TrustRegion:
    """For numbers and categories. Its notes: the step."""

    def __init__(self, coordinates: Coordinates, *, tied: float = _TIED) -> None:
        """tied: share of the candidates that tie numbers along the depth."""
        self._climb = Climb(coordinates)
        self._families = coordinates.families()
        self._past: list[Past] = []
        self._tied = tied

    def learn(self, past: Past) -> None:
        """A success becomes the best trial and makes the step longer; the model learns of all."""
        self._climb.learn(past)
        self._past.append(past)

    def propose(
        self, random: np.random.Generator, under_way: Sequence[Point] = ()
    ) -> tuple[Point, Any]:
        """Of steps in single numbers and along the depth, the one of the lowest optimistic loss."""
        size = len(self._climb.place.numbers)
        candidates = []
        for number in range(_CANDIDATES):
            along = number < self._tied * _CANDIDATES
            move = tied(random, self._families, size) if along else sparse(random, size)
            candidates.append(self._climb.moved(move, random))
        if len(self._past) < _FEWEST:
            return candidates[-1], self._climb.step
        distances = _squares([past.point for past in self._past], [self._climb.place])[:, 0]
        nearest = [self._past[place] for place in np.argsort(distances, kind="stable")[:_NEAREST]]
        points = [past.point for past in nearest]
        model = fit(_squares(points, points), np.array(losses(nearest)), size)
        if under_way:
            points = [*points, *under_way]
            model = model.with_points(_squares(points, points))
        mean, deviation = model.predict(_squares(candidates, points))
        return candidates[int(np.argmin(mean - _OPTIMISM * deviation))], self._climb.step


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A Gaussian process with a squared exponential kernel, over standardised losses."""

    scale: float
    """Length scale."""
    factor: Matrix
    """[points, points], the lower Cholesky factor of kernel plus noise."""
    weights: Vector
    """[points]: the kernel's inverse times the losses."""
    variance: float
    noise: float
    """Variance, as a share of the signal's."""

    def with_points(self, squares: Matrix) -> "Model":
        """The model that believes further points to have the losses that it expects there, the last
        of [points, points] squared distances: only its deviations change (the kriging believer of
        Ginsbourger et al. 2010)."""
        kernel = np.exp(-squares / (2 * self.scale**2)) + self.noise * np.eye(len(squares))
        further = np.zeros(len(squares) - len(self.weights))
        factor: Matrix = np.array(np.linalg.cholesky(kernel), dtype=np.float64)
        return replace(self, factor=factor, weights=np.append(self.weights, further))

    def predict(self, squares: Matrix) -> tuple[Vector, Vector]:
        """Mean and standard deviation at places, from [places, points] squared distances."""
        kernel = np.exp(-squares / (2 * self.scale**2))
        explained = np.linalg.solve(self.factor, kernel.T) ** 2
        left = np.maximum(1e-12, 1 - explained.sum(axis=0))
        return kernel @ self.weights, np.sqrt(self.variance * left)


def fit(squares: Matrix, values: Vector, dimensions: int) -> Model:
    """The most likely of a few models (Rasmussen and Williams 2006, equations 2.25 to 2.30).

    squares: [points, points] squared distances. values: [points] losses.
    """
    middle, least = float(np.median(values)), float(values.min())
    capped = np.minimum(values, middle + _WORST * (middle - least)) if middle > least else values
    targets = (capped - capped.mean()) / (capped.std() or 1.0)
    found: list[tuple[float, Model]] = []
    for scale in np.array(_SCALES) * np.sqrt(max(1, dimensions)):
        kernel = np.exp(-squares / (2 * scale**2))
        for noise in _NOISES:
            factor = np.linalg.cholesky(kernel + noise * np.eye(len(values)))
            half = np.linalg.solve(factor, targets)
            variance = float(half @ half) / len(values) + 1e-12
            likelihood = -0.5 * len(values) * np.log(variance) - np.log(np.diag(factor)).sum()
            weights = np.linalg.solve(factor.T, half)
            model = Model(
                scale=scale, factor=factor, weights=weights, variance=variance, noise=noise
            )
            found.append((float(likelihood), model))
    return max(found, key=lambda pair: pair[0])[1]


def _squares(first: list[Point], second: list[Point]) -> Matrix:
    """[first, second] squared distances."""
    one, two = (np.array([point.numbers for point in points]) for points in (first, second))
    squares = (one**2).sum(1)[:, None] + (two**2).sum(1) - 2 * one @ two.T
    own, other = (np.array([point.choices for point in points]) for points in (first, second))
    unlike = (own[:, None, :] != other[None, :, :]).sum(axis=2)
    found: Matrix = np.maximum(squares, 0.0) + _CATEGORY * unlike
    return found

"""Spherical means of any number of sources: multi-SLERP and the Karcher mean.

The direction is the Riemannian mean of the unit vectors w_i / ‖w_i‖ (or δ_i / ‖δ_i‖), the length
the weighted mean of the lengths. `multislerp` takes one step from the weighted mean direction (log
map there, weighted mean, exp map back); `karcher` weighs all alike and iterates until it stands
still. Both iterate on coefficients: the Gram matrix is all they need (see `sphere`).
mergekit's multi-SLERP leaves θ / sin θ out of the log map; this one does not.
"""

from collections.abc import Mapping

import torch

from evomerge.errors import CandidateError
from evomerge.methods.method import Method, Parameter, Scalars, Statistics, Value
from evomerge.methods.parameters import WEIGHT, flag, number, numbers
from evomerge.methods.products import gram_of_all, gram_of_deltas, gram_of_sources
from evomerge.methods.sphere import mean_weights
from evomerge.methods.sums import span

_SMALLEST_SUM = 1e-6


def _multislerp(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    weights = torch.tensor(numbers(parameters, "weight"), dtype=torch.float64)
    if abs(float(weights.sum())) < _SMALLEST_SUM:
        raise CandidateError(
            f"multislerp: the weights {weights.tolist()} sum to almost zero; expected a sum of at"
            f" least {_SMALLEST_SUM:g} in size"
        )
    deltas = flag(parameters, "task_vectors")
    gram = gram_of_all(statistics)
    gram = gram_of_deltas(gram) if deltas else gram[1:, 1:]
    coefficients = mean_weights(weights / weights.sum(), gram, steps=1)
    return {"base": [float(deltas)], "weight": coefficients.tolist()}


def _karcher(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    count = statistics.sources
    shares = torch.full((count,), 1 / count, dtype=torch.float64)
    steps, tolerance = round(number(parameters, "max_iter")), number(parameters, "tol")
    coefficients = mean_weights(shares, gram_of_sources(statistics), steps, tolerance)
    return {"base": [0.0], "weight": coefficients.tolist()}


MULTISLERP = Method(
    name="multislerp",
    title="Multi-SLERP",
    paper="https://arxiv.org/abs/1201.0925",
    formula="one step of the weighted spherical mean of the w_i, times Σ p_i ‖w_i‖ / Σ p_i",
    parameters=(
        WEIGHT,
        Parameter(
            name="task_vectors",
            default=False,
            help="average w_i − w0 instead of w_i, and add the base",
            searched=False,
        ),
    ),
    coefficients=_multislerp,
    combine=span,
    needs_base=True,
    minimum_sources=2,
    needs=frozenset({"gram"}),
)

KARCHER = Method(
    name="karcher",
    title="Karcher mean",
    paper="https://arxiv.org/abs/1201.0925",
    formula="the spherical mean of the w_i / ‖w_i‖, times the mean of the ‖w_i‖",
    parameters=(
        Parameter(
            name="max_iter",
            default=10.0,
            help="steps at most",
            low=1.0,
            high=20.0,
            minimum=1.0,
            searched=False,
        ),
        Parameter(
            name="tol",
            default=1e-5,
            help="radians that the mean moves by at which it stands still",
            minimum=0.0,
            searched=False,
        ),
    ),
    coefficients=_karcher,
    combine=span,
    needs_base=False,
    minimum_sources=2,
    needs=frozenset({"gram"}),
)

"""DARE: drop and rescale (Yu et al. 2024, arXiv 2311.03099, section 3.2).

δ̂_i = m_i ∘ δ_i / density where `rescale`, with m_i ~ Bernoulli(density), so that E[δ̂_i] = δ_i
`dare_linear`: w = w0 + λ Σ p_i δ̂_i
`dare_ties`: signs elected over p_i δ̂_i as in TIES; w = w0 + λ · the sum (or, where `normalize`,
the mean) of those that agree

At density 0 nothing is kept.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from evomerge.methods.election import NORMALIZE, divisors, elect
from evomerge.methods.masks import kept, keys
from evomerge.methods.method import Method, Operands, Parameter, Scalars, Statistics, Value
from evomerge.methods.parameters import LAMBDA, WEIGHT, density, flag, number, numbers
from evomerge.methods.sums import add, weighted_deltas

_PARAMETERS = (
    WEIGHT,
    density(0.1),  # the paper's usual drop rate is 0.9
    LAMBDA,
    Parameter(
        name="rescale",
        default=True,
        help="divide what is kept by the density",
        searched=False,
    ),
)


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    weights, densities = numbers(parameters, "weight"), numbers(parameters, "density")
    if flag(parameters, "rescale"):
        weights = tuple(
            weight / share if share > 0 else 0.0
            for weight, share in zip(weights, densities, strict=True)
        )
    sources = range(1, statistics.sources + 1)
    return {
        "weight": weights,
        **keys([statistics.key(source) for source in sources], densities),
        "lambda": [number(parameters, "lambda")],
    }


def _coefficients_of_ties(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    election = divisors(numbers(parameters, "weight"), flag(parameters, "normalize"))
    return {**_coefficients(parameters, statistics), **election}


def _survivors(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.where(kept(operands, scalars, i), delta, 0.0)
        for i, delta in enumerate(weighted_deltas(operands, scalars))
    )


def _combine_linear(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return operands.base + scalars["lambda"][0] * add(_survivors(operands, scalars))


def _combine_ties(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> torch.Tensor:
    votes = _survivors(operands, scalars)
    return operands.base + scalars["lambda"][0] * elect(votes, scalars)


DARE_LINEAR = Method(
    name="dare_linear",
    title="DARE, summed",
    paper="https://arxiv.org/abs/2311.03099",
    formula="w0 + λ Σ p_i m_i δ_i / density_i",
    parameters=_PARAMETERS,
    coefficients=_coefficients,
    combine=_combine_linear,
    needs_base=True,
    zero_is_absent=True,
    needs=frozenset({"mask"}),
)

DARE_TIES = Method(
    name="dare_ties",
    title="DARE with TIES' sign election",
    paper="https://arxiv.org/abs/2311.03099",
    formula="w0 + λ Σ of the p_i m_i δ_i / density_i that have the elected sign",
    parameters=(*_PARAMETERS, replace(NORMALIZE, default=False)),
    coefficients=_coefficients_of_ties,
    combine=_combine_ties,
    needs_base=True,
    zero_is_absent=True,
    needs=frozenset({"mask"}),
)

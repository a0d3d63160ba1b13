"""Model Breadcrumbs (Davari and Belilovsky 2023, arXiv 2312.06795, section 3).

Of each δ_i the largest γ share is dropped and then the smallest, so that `density` is left; where
γ + density > 1, fewer of the largest are dropped.
`breadcrumbs`: w = w0 + λ Σ p_i m_i ∘ δ_i        (eq. 2)
`breadcrumbs_ties`: signs elected over p_i m_i ∘ δ_i as in TIES
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from evomerge.methods.election import NORMALIZE, divisors, elect
from evomerge.methods.method import Method, Operands, Parameter, Scalars, Statistics, Value
from evomerge.methods.parameters import LAMBDA, WEIGHT, density, flag, number, numbers
from evomerge.methods.sums import add
from evomerge.methods.trimming import cuts, largest


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    shares = zip(numbers(parameters, "density"), numbers(parameters, "gamma"), strict=True)
    tops, bottoms = [], []
    for source, (kept, dropped) in enumerate(shares, start=1):
        top = min(dropped, 1 - kept)
        tops.append(statistics.threshold(source, top))
        bottoms.append(statistics.threshold(source, min(1.0, top + kept)))
    return {
        "weight": numbers(parameters, "weight"),
        **cuts(tops, "top_"),
        **cuts(bottoms),
        "lambda": [number(parameters, "lambda")],
    }


def _coefficients_of_election(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    election = divisors(numbers(parameters, "weight"), flag(parameters, "normalize"))
    return {**_coefficients(parameters, statistics), **election}


def _crumbs(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    left = []
    for i, source in enumerate(operands.sources):
        delta = source - operands.base
        kept = largest(delta, operands, i)
        kept = kept & ~largest(delta, operands, i, "top_")
        left.append(torch.where(kept, scalars["weight"][i] * delta, 0.0))
    return tuple(left)


def _combine(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return operands.base + scalars["lambda"][0] * add(_crumbs(operands, scalars))


def _combine_ties(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return operands.base + scalars["lambda"][0] * elect(_crumbs(operands, scalars), scalars)


_PARAMETERS = (
    WEIGHT,
    density(0.9),
    Parameter(
        name="gamma",
        default=0.01,
        help="share of each task vector's largest entries that is dropped",
        high=0.1,
        minimum=0.0,
        maximum=1.0,
        per_source=True,
        shared=True,
        searched=False,
        step=0.01,
    ),
    LAMBDA,
)

BREADCRUMBS = Method(
    name="breadcrumbs",
    title="Model Breadcrumbs",
    paper="https://arxiv.org/abs/2312.06795",
    formula="w0 + λ Σ p_i δ_i without the largest γ and the smallest entries",
    parameters=_PARAMETERS,
    coefficients=_coefficients,
    combine=_combine,
    needs_base=True,
    zero_is_absent=True,
    needs=frozenset({"thresholds"}),
)

BREADCRUMBS_TIES = Method(
    name="breadcrumbs_ties",
    title="Model Breadcrumbs with TIES' sign election",
    paper="https://arxiv.org/abs/2312.06795",
    formula="w0 + λ Σ of the p_i δ_i without their largest γ and smallest entries, elected sign",
    parameters=(*_PARAMETERS, replace(NORMALIZE, default=False)),
    coefficients=_coefficients_of_election,
    combine=_combine_ties,
    needs_base=True,
    zero_is_absent=True,
    needs=frozenset({"thresholds"}),
)

"""TIES: trim, elect sign, disjoint mean (Yadav et al. 2023, arXiv 2306.01708, algorithm 1).

1. trim: of each δ_i keep the largest `density` share by magnitude, zero the rest
2. elect: the sign of Σ p_i δ_i, element by element; + where the sum is zero
3. merge: Σ p_i δ_i over the sources that agree, divided by Σ |p_i| over them where `normalize`
w = w0 + λ · merged

Dividing by Σ |p_i| is dividing by Σ p_i as long as no weight is negative; with negative weights
Σ p_i could be almost zero and the result explode, while this stays a mean of the ±δ_i.
"""

from collections.abc import Mapping

import torch

from evomerge.methods.election import NORMALIZE, divisors, elect
from evomerge.methods.method import Method, Operands, Scalars, Statistics, Value
from evomerge.methods.parameters import LAMBDA, WEIGHT, density, flag, number, numbers
from evomerge.methods.trimming import cuts, largest


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    weights = numbers(parameters, "weight")
    ends = [
        statistics.threshold(source, share)
        for source, share in enumerate(numbers(parameters, "density"), start=1)
    ]
    return {
        "weight": weights,
        **divisors(weights, flag(parameters, "normalize")),
        **cuts(ends),
        "lambda": [number(parameters, "lambda")],
    }


def _combine(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> torch.Tensor:
    votes = tuple(
        torch.where(largest(delta, operands, i), delta * scalars["weight"][i], 0.0)
        for i, delta in enumerate(source - operands.base for source in operands.sources)
    )
    return operands.base + scalars["lambda"][0] * elect(votes, scalars)


TIES = Method(
    name="ties",
    title="TIES",
    paper="https://arxiv.org/abs/2306.01708",
    formula="w0 + λ · mean of the trimmed p_i δ_i that have the elected sign",
    # Defaults of the paper's section 4: keep the top 20 %, λ = 1.
    parameters=(WEIGHT, density(0.2), LAMBDA, NORMALIZE),
    coefficients=_coefficients,
    combine=_combine,
    needs_base=True,
    zero_is_absent=True,
    needs=frozenset({"thresholds"}),
)

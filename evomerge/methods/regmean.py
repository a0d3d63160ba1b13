"""RegMean: regression mean (Jin et al. 2023, arXiv 2212.09849, section 3).

The linear weight whose outputs are nearest to those of the sources, each on its own inputs X_i:
W = argmin Σ p_i ‖X_i Wᵀ − X_i W_iᵀ‖² has a closed form in the Gram matrices G_i = X_iᵀ X_i,
W = (Σ p_i W_i G̃_i) (Σ p_i G̃_i)⁻¹, with G̃_i = α G_i + (1 − α) diag(G_i)        (eq. 2, section 3.3)

α is `off_diagonal`. All other tensors are averaged: Σ p_i w_i ÷ Σ p_i. To each G̃_i 10⁻⁶ of the mean
of their diagonals is added, so that inputs that are never active take the average too.
"""

from collections.abc import Mapping

import torch

from evomerge.errors import CandidateError
from evomerge.methods.method import Method, Parameter, Scalars, Statistics, Value
from evomerge.methods.parameters import WEIGHT, number, numbers
from evomerge.methods.sums import weighted_sources

_SMALLEST_SUM = 1e-6
_RIDGE = 1e-6
_TINY = 1e-30  # a ridge where nothing at all is active


def _shares(parameters: Mapping[str, Value]) -> list[float]:
    weights = numbers(parameters, "weight")
    if min(weights) < 0 or sum(weights) < _SMALLEST_SUM:
        raise CandidateError(
            f"regmean: the weights are {list(weights)}; expected none below 0 and a sum of at least"
            f" {_SMALLEST_SUM:g}"
        )
    return [weight / sum(weights) for weight in weights]


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    return {"weight": _shares(parameters)}


def _solve(
    sources: tuple[torch.Tensor, ...], parameters: Mapping[str, Value], statistics: Statistics
) -> torch.Tensor | None:
    inputs = [each for i in range(len(sources)) if (each := statistics.activations(i + 1))]
    if len(inputs) < len(sources):
        return None
    shares, device = _shares(parameters), sources[0].device
    flip = inputs[0].dim == 0
    weights = [(source.T if flip else source).float() for source in sources]
    grams = [each.gram.to(device).float() for each in inputs]
    merged = _regression(weights, grams, shares, number(parameters, "off_diagonal"))
    return merged.T if flip else merged


def _regression(
    weights: list[torch.Tensor], grams: list[torch.Tensor], shares: list[float], alpha: float
) -> torch.Tensor:
    """[out, in]: W_1 + (Σ p_i (W_i − W_1) G̃_i) (Σ p_i G̃_i)⁻¹, which is the equation.

    Written so, one product less is needed, and equal sources leave nothing to round.
    """
    mean = sum(float(gram.diagonal().mean()) for gram in grams) / len(grams)
    ridge = _RIDGE * mean + _TINY
    left, right = torch.zeros_like(weights[0]), torch.zeros_like(grams[0])
    for i, (share, gram) in enumerate(zip(shares, grams, strict=True)):
        scaled = share * alpha * gram
        scaled.diagonal().copy_(share * (gram.diagonal() + ridge))
        if i > 0:
            left += (weights[i] - weights[0]) @ scaled
        right += scaled
    factor, failed = torch.linalg.cholesky_ex(right)
    if failed:
        raise CandidateError(
            f"regmean: the sum of the Gram matrices is singular with off_diagonal {alpha:g}; "
            "expected a smaller one, or more calibration tokens than the layer has inputs"
        )
    return weights[0] + torch.cholesky_solve(left.T, factor).T


REGMEAN = Method(
    name="regmean",
    title="RegMean (regression mean)",
    paper="https://arxiv.org/abs/2212.09849",
    formula="(Σ p_i W_i G̃_i) (Σ p_i G̃_i)⁻¹, G̃ = α G + (1−α) diag(G), G_i = X_iᵀ X_i of the inputs; "
    "tensors of no linear layer: Σ p_i w_i ÷ Σ p_i",
    parameters=(
        WEIGHT,
        Parameter(
            name="off_diagonal",
            default=0.9,
            help="α: what is left of the Gram matrices beside their diagonals",
            low=0.1,
            high=0.95,
            minimum=0.0,
            maximum=1.0,
        ),
    ),
    coefficients=_coefficients,
    combine=weighted_sources,
    solve=_solve,
    needs_base=False,
    needs=frozenset({"activations"}),
)

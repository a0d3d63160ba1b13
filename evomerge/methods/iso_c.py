"""Iso-C: isotropic merging in common subspace (Marczak et al. 2025, arXiv 2502.04959, section 4.1).

Σ δ_i = U diag(σ) Vᵀ; w = w0 + λ σ̄ U Vᵀ, with σ̄ the mean of the singular values        (eq. 5)

U and V are cut to the numerical rank of the sum, whose other directions would be arbitrary. Tensors
of other than two dimensions are averaged: w0 + λ mean(δ_i).
"""

from collections.abc import Mapping

import torch

from evomerge.methods.low_rank import Factors, decompose, scaled, task_vectors
from evomerge.methods.method import Matrix, Method, Scalars, Statistics, Value
from evomerge.methods.parameters import LAMBDA, number
from evomerge.methods.sums import span


def _factors(base: torch.Tensor, *sources: torch.Tensor) -> dict[str, torch.Tensor]:
    deltas = task_vectors(base, sources)
    u, sigma, v = decompose(torch.stack(deltas).sum(0))
    mean = sigma.sum() / max(1, len(sigma))
    return {"direction": mean * (u @ v)}


def _compose(factors: Factors, parameters: Mapping[str, Value]) -> torch.Tensor:
    return scaled(parameters, factors["direction"])


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    share = number(parameters, "lambda") / statistics.sources
    return {"base": [1.0], "weight": [share] * statistics.sources}


ISO_C = Method(
    name="iso_c",
    title="Isotropic merging (Iso-C)",
    paper="https://arxiv.org/abs/2502.04959",
    formula="w0 + λ σ̄ U Vᵀ, with U diag(σ) Vᵀ = Σ δ_i",
    parameters=(LAMBDA,),
    coefficients=_coefficients,
    combine=span,
    matrix=Matrix(factors=_factors, compose=_compose),
    needs_base=True,
    needs=frozenset({"factors"}),
)

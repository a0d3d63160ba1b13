"""TSV-Merge: task singular vectors (Gargiulo et al. 2025, arXiv 2412.00081, algorithm 1).

1. δ_i = U_i Σ_i V_iᵀ, cut to the largest 1/k of its singular values
2. U = [U_1 … U_k] and V likewise; each whitened to the nearest matrix with orthonormal columns:
   U = P D Qᵀ gives U⊥ = P Qᵀ (orthogonal Procrustes, eq. 9)
w = w0 + λ U⊥ diag(p_1 Σ_1, …, p_k Σ_k) V⊥ᵀ

Tensors of other than two dimensions are merged by task arithmetic.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from evomerge.methods.low_rank import Factors, decompose, scaled, task_vectors
from evomerge.methods.method import Matrix, Value
from evomerge.methods.parameters import numbers
from evomerge.methods.task_arithmetic import TASK_ARITHMETIC


def _factors(base: torch.Tensor, *sources: torch.Tensor) -> dict[str, torch.Tensor]:
    most = math.ceil(min(base.shape) / len(sources))
    parts = [decompose(delta) for delta in task_vectors(base, sources)]
    parts = [(u[:, :most], sigma[:most], v[:most]) for u, sigma, v in parts]
    ranks = [len(sigma) for _, sigma, _ in parts]
    return {
        "left": _whitened(torch.cat([u for u, _, _ in parts], dim=1)),
        "sigma": torch.cat([sigma for _, sigma, _ in parts]),
        "right": _whitened(torch.cat([v for _, _, v in parts]).T).T.contiguous(),
        "source": torch.repeat_interleave(torch.arange(len(sources)), torch.tensor(ranks)),
    }


def _whitened(columns: torch.Tensor) -> torch.Tensor:
    p, _, q = torch.linalg.svd(columns, full_matrices=False)
    nearest: torch.Tensor = p @ q
    return nearest


def _compose(factors: Factors, parameters: Mapping[str, Value]) -> torch.Tensor:
    weights = factors["sigma"].new_tensor(numbers(parameters, "weight"))[factors["source"]]
    product = (factors["left"] * (weights * factors["sigma"])) @ factors["right"]
    return scaled(parameters, product)


TSV = replace(
    TASK_ARITHMETIC,
    name="tsv",
    title="Task singular vectors (TSV-Merge)",
    paper="https://arxiv.org/abs/2412.00081",
    formula="w0 + λ U⊥ diag(p_i Σ_i) V⊥ᵀ of the whitened largest singular vectors of the δ_i",
    matrix=Matrix(factors=_factors, compose=_compose),
    needs=frozenset({"factors"}),
    zero_is_absent=False,
)

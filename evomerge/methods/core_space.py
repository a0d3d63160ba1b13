"""Core space merging (Panariello et al. 2025, arXiv 2509.17786, section 4).

δ_i = B_i A_i; U_B an orthonormal basis of [B_1 … B_k], V_A one of the rows of the A_i. The cores
M_i = U_Bᵀ δ_i V_A are merged, by a weighted sum or trimmed and sign-elected where `ties`.
w = w0 + λ U_B M V_Aᵀ

Nothing is lost: the bases span all task vectors. Cores are small where these are of low rank
(LoRA); for full ones they are as large as the weights. Tensors of other than two dimensions are
merged by task arithmetic.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from evomerge.methods.knots import PARAMETERS
from evomerge.methods.low_rank import (
    Factors,
    decompose,
    ends_on_grid,
    merge_cores,
    scaled,
    task_vectors,
)
from evomerge.methods.method import Matrix, Value
from evomerge.methods.task_arithmetic import TASK_ARITHMETIC


def _factors(base: torch.Tensor, *sources: torch.Tensor) -> dict[str, torch.Tensor]:
    deltas = task_vectors(base, sources)
    parts = [decompose(delta) for delta in deltas]
    left = decompose(torch.cat([u * sigma.sqrt() for u, sigma, _ in parts], dim=1))[0]
    right = decompose(torch.cat([sigma.sqrt()[:, None] * v for _, sigma, v in parts]))[2]
    cores = [left.T @ delta @ right.T for delta in deltas]
    return {
        "left": left,
        "right": right,
        "cores": torch.stack(cores),
        "ends": ends_on_grid(cores),
    }


def _compose(factors: Factors, parameters: Mapping[str, Value]) -> torch.Tensor:
    merged = merge_cores(factors["cores"], factors["ends"], parameters)
    return scaled(parameters, factors["left"] @ merged @ factors["right"])


CORE_SPACE = replace(
    TASK_ARITHMETIC,
    name="core_space",
    title="Core space merging",
    paper="https://arxiv.org/abs/2509.17786",
    formula="w0 + λ U_B · TIES(U_Bᵀ δ_i V_A) · V_Aᵀ",
    parameters=PARAMETERS,
    matrix=Matrix(factors=_factors, compose=_compose),
    needs=frozenset({"factors"}),
    zero_is_absent=False,
)

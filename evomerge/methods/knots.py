"""KnOTS (Stoica et al. 2024, arXiv 2410.19735, section 4).

[δ_1 … δ_k] = U Σ [V_1ᵀ … V_kᵀ]: one basis U for all; the V_iᵀ are merged there, by a weighted sum
or, where `ties`, trimmed and sign-elected. w = w0 + λ U Σ V_mergedᵀ

Made for LoRA task vectors, whose basis is small; with `ties: false` it is task arithmetic. Tensors
of other than two dimensions are merged by task arithmetic.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from evomerge.methods.low_rank import (
    Factors,
    decompose,
    ends_on_grid,
    merge_cores,
    scaled,
    task_vectors,
)
from evomerge.methods.method import Matrix, Parameter, Value
from evomerge.methods.parameters import LAMBDA, WEIGHT, density
from evomerge.methods.task_arithmetic import TASK_ARITHMETIC

PARAMETERS = (
    WEIGHT,
    density(0.2),
    LAMBDA,
    Parameter(
        name="ties",
        default=True,
        help="trim and elect signs in the shared basis; otherwise a weighted sum",
        searched=False,
    ),
)


def _factors(base: torch.Tensor, *sources: torch.Tensor) -> dict[str, torch.Tensor]:
    u, sigma, v = decompose(torch.cat(task_vectors(base, sources), dim=1))
    parts = torch.split(v, base.shape[1], dim=1)
    return {"basis": u * sigma, "cores": torch.stack(parts), "ends": ends_on_grid(parts)}


def _compose(factors: Factors, parameters: Mapping[str, Value]) -> torch.Tensor:
    merged = merge_cores(factors["cores"], factors["ends"], parameters)
    return scaled(parameters, factors["basis"] @ merged)


KNOTS = replace(
    TASK_ARITHMETIC,
    name="knots",
    title="KnOTS",
    paper="https://arxiv.org/abs/2410.19735",
    formula="w0 + λ U Σ · TIES(V_iᵀ), with U Σ [V_1ᵀ … V_kᵀ] = [δ_1 … δ_k]",
    parameters=PARAMETERS,
    matrix=Matrix(factors=_factors, compose=_compose),
    needs=frozenset({"factors"}),
    zero_is_absent=False,
)

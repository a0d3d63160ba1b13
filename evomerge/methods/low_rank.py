"""Singular value decompositions of task vectors, and merges of small matrices in a shared basis."""

from collections.abc import Mapping, Sequence

import torch

from evomerge.errors import CandidateError
from evomerge.methods.method import Value
from evomerge.methods.parameters import flag, number, numbers

GRID = 100
"""Densities of trimmed cores are rounded to multiples of 1/GRID."""

Factors = Mapping[str, torch.Tensor]


def task_vectors(base: torch.Tensor, sources: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """δ_i, float32 [m, n]."""
    start = base.float()
    return [source.float() - start for source in sources]


def decompose(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U [m, r], σ [r], Vᵀ [r, n] in float32, with r the numerical rank (0 for a zero matrix).

    Directions with no singular value are arbitrary: they are left out, so that nothing depends on
    them. σ below eps · max(m, n) · σ_1 counts as none, as in numpy's matrix_rank.
    """
    if not matrix.isfinite().all():
        raise CandidateError(
            "a task vector has NaN or infinite entries, which has no singular values; check the "
            "sources' files"
        )
    if not matrix.numel():
        return matrix.new_zeros(matrix.shape[0], 0), matrix.new_zeros(0), matrix[:0]
    u, sigma, v = torch.linalg.svd(matrix, full_matrices=False)
    smallest = sigma[0] * max(matrix.shape) * torch.finfo(torch.float32).eps
    rank = int((sigma > smallest).sum())
    return u[:, :rank], sigma[:rank], v[:rank]


def ends_on_grid(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Smallest magnitude kept at densities 0, 1/GRID, …, 1 of each matrix: [k, GRID + 1]."""
    rows = []
    for part in parts:
        ordered = part.abs().flatten().sort(descending=True).values
        counts = [(cell * len(ordered) + GRID // 2) // GRID for cell in range(GRID + 1)]
        rows.append([float(ordered[n - 1]) if n else float("inf") for n in counts])
    return torch.tensor(rows)


def merge_cores(
    cores: torch.Tensor, ends: torch.Tensor, parameters: Mapping[str, Value]
) -> torch.Tensor:
    """Weighted sum of matrices [k, r, n] of one basis; trimmed and sign-elected where `ties`.

    ends: of `ends_on_grid`. Elected entries are averaged by weight, as in TIES.
    """
    weights = cores.new_tensor(numbers(parameters, "weight")).view(-1, 1, 1)
    votes = weights * cores
    if not flag(parameters, "ties"):
        return votes.sum(0)
    cells = [round(density * GRID) for density in numbers(parameters, "density")]
    limits = torch.stack([ends[i, cell] for i, cell in enumerate(cells)]).view(-1, 1, 1)
    votes = torch.where(cores.abs() >= limits, votes, 0.0)
    sign = torch.where(votes.sum(0) >= 0, 1.0, -1.0)
    agreeing = votes * sign > 0
    divisor = torch.where(agreeing, weights.abs(), 0.0).sum(0)
    return torch.where(agreeing, votes, 0.0).sum(0) / torch.where(divisor > 0, divisor, 1.0)


def scaled(parameters: Mapping[str, Value], merged: torch.Tensor) -> torch.Tensor:
    """λ · merged."""
    return number(parameters, "lambda") * merged

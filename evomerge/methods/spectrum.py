"""Ranks of task vectors, as numbers between 1 and the smaller side."""

import torch


def effective_rank(matrix: torch.Tensor) -> float:
    """exp(−Σ p_i log p_i) with p_i = σ_i / Σ σ_j (Roy and Vetterli 2007, "The effective rank").

    1 where one singular value has everything, r where r are equal and the others zero. matrix:
    [m, n]; NaN if it has no elements, or zeros only. The singular values are the roots of the
    eigenvalues of the smaller of δᵀδ and δδᵀ, in float64.
    """
    if not matrix.any():
        return float("nan")
    short = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).double()
    squares = torch.linalg.eigvalsh(short @ short.T)
    # What float64 leaves of a zero eigenvalue is no singular value.
    noise = squares[-1] * len(squares) * torch.finfo(torch.float64).eps
    sigma = torch.where(squares > noise, squares, 0.0).sqrt()
    share = sigma / sigma.sum()
    return float((-torch.xlogy(share, share).sum()).exp())

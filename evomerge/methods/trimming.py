"""Trimming by magnitude, with equal magnitudes cut by position: exactly the share asked for."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from evomerge.methods.method import Operands, Scalars

_BLOCK = 2**31  # positions count within blocks of this many elements


def cuts(ends: Sequence[tuple[float, int]], prefix: str = "") -> Scalars:
    """The scalars of `largest`, from one `Statistics.threshold` per source.

    Up to the last index that is kept, magnitudes equal to the threshold count; behind it only
    larger ones do, which are at least the next float32.
    """
    blocks = [divmod(last, _BLOCK) for _, last in ends]
    above = [float(np.nextafter(np.float32(end), np.float32(np.inf))) for end, _ in ends]
    return {
        f"{prefix}least": [magnitude for magnitude, _ in ends],
        f"{prefix}above": above,
        f"{prefix}last": [last for _, last in blocks],
        f"{prefix}last_block": [block for block, _ in blocks],
    }


def largest(
    delta: torch.Tensor,
    operands: Operands,
    scalars: Mapping[str, torch.Tensor],
    source: int,
    prefix: str = "",
) -> torch.Tensor:
    """Whether each element is among the largest of its task vector; source counted from 0."""
    block, last_block = operands.block, scalars[f"{prefix}last_block"][source]
    last = torch.where(block == last_block, scalars[f"{prefix}last"][source], -1)
    last = torch.where(block < last_block, _BLOCK - 1, last)
    least, above = scalars[f"{prefix}least"][source], scalars[f"{prefix}above"][source]
    return delta.abs() >= torch.where(operands.position <= last, least, above)

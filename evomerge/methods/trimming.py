"""Trimming by magnitude, with equal magnitudes cut by position: exactly the share asked for."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from evomerge.methods.method import Operands, Scalars


def cuts(ends: Sequence[tuple[float, int]], prefix: str = "") -> Scalars:
    """The scalars of `largest`, from one `Statistics.threshold` per source.

    Up to the last index that is kept, magnitudes equal to the threshold count; behind it only
    larger ones do, which are at least the next float32.
    """
    above = [float(np.nextafter(np.float32(end), np.float32(np.inf))) for end, _ in ends]
    return {
        f"{prefix}least": [magnitude for magnitude, _ in ends],
        f"{prefix}above": above,
        f"{prefix}last": torch.tensor([last for _, last in ends], dtype=torch.int64),
    }


def largest(
    delta: torch.Tensor,
    operands: Operands,
    scalars: Mapping[str, torch.Tensor],
    source: int,
    prefix: str = "",
) -> torch.Tensor:
    """Whether each element is among the largest of its task vector; source counted from 0."""
    least, above = scalars[f"{prefix}least"][source], scalars[f"{prefix}above"][source]
    before = operands.position <= scalars[f"{prefix}last"][source]
    return delta.abs() >= torch.where(before, least, above)

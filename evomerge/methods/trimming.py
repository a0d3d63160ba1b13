"""Trimming by magnitude, with equal magnitudes cut by position: exactly the share asked for."""

from collections.abc import Sequence

import torch

from evomerge.methods.method import Operands, Scalars, Step


def cuts(ends: Sequence[tuple[float, int]], prefix: str = "") -> Scalars:
    """The scalars of `largest`, from one `Statistics.threshold` per source.

    Up to the last index that is kept, magnitudes equal to the threshold count; behind it only
    larger ones do, which are at least the next float32.
    """
    least = torch.tensor([magnitude for magnitude, _ in ends], dtype=torch.float32)
    above = torch.nextafter(least, torch.tensor(torch.inf))
    last = torch.tensor([last for _, last in ends], dtype=torch.int64)
    return {f"{prefix}least": Step(values=torch.stack((least, above)), last=last)}


def largest(delta: torch.Tensor, operands: Operands, source: int, prefix: str = "") -> torch.Tensor:
    """Whether each element is among the largest of its task vector; source counted from 0."""
    return delta.abs() >= operands.limits[f"{prefix}least"][source]

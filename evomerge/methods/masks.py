"""Random masks without memory: each element's random number is a hash of its key and position.

The same in the search and in the export, on every device, in whatever chunks. The hash is a
32-bit mixer of the xorshift-multiply kind (constants after C. Wellons' hash-prospector and its
"lowbias32" line), run once per half of the key. It is carried in int32, whose products wrap.
"""

from collections.abc import Mapping, Sequence

import torch

from evomerge.methods.method import Operands, Scalars

_STEPS = 2**24  # random numbers are multiples of 1 / _STEPS


def keys(keys: Sequence[int], densities: Sequence[float]) -> Scalars:
    """The scalars of `kept`: 62-bit keys in two halves, densities in steps of 2^-24."""
    return {
        "key_low": [key & 0x7FFFFFFF for key in keys],
        "key_high": [key >> 31 for key in keys],
        "steps": [round(density * _STEPS) for density in densities],
    }


def kept(operands: Operands, scalars: Mapping[str, torch.Tensor], source: int) -> torch.Tensor:
    """Whether each element of a source (counted from 0) survives: true with its density."""
    return _random(operands, scalars, source) < scalars["steps"][source]


def uniform(operands: Operands, scalars: Mapping[str, torch.Tensor], source: int) -> torch.Tensor:
    """Random numbers in [0, 1), float32, multiples of 2^-24; `kept` compares the same ones."""
    return _random(operands, scalars, source).to(torch.float32) * (1 / _STEPS)


def _random(operands: Operands, scalars: Mapping[str, torch.Tensor], source: int) -> torch.Tensor:
    mixed = _mix(operands.position ^ scalars["key_low"][source])
    mixed = _mix(mixed ^ (scalars["key_high"][source] ^ operands.block))
    return (mixed >> 8) & 0xFFFFFF


def _mix(bits: torch.Tensor) -> torch.Tensor:
    # The shifts are arithmetic; the masks make them logical.
    bits = bits ^ ((bits >> 16) & 0xFFFF)
    bits = bits * 0x21F0AAAD
    bits = bits ^ ((bits >> 15) & 0x1FFFF)
    bits = bits * 0x735A2D97
    return bits ^ ((bits >> 15) & 0x1FFFF)

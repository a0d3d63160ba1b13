"""Random masks without memory: each element's random number is a hash of its key and position.

The same in the search and in the export, on every device, in whatever chunks. The hash is a
32-bit mixer of the xorshift-multiply kind (constants after C. Wellons' hash-prospector and its
"lowbias32" line), run once per half of the key. It is carried in int64, and both multipliers
are below 2^31, so that no product leaves a signed 64-bit integer.
"""

import torch

_LOW_32 = 0xFFFFFFFF
_LOW_31 = 0x7FFFFFFF


def uniform(key: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Uniform random numbers in [0, 1), multiples of 2^-24.

    key: int64 0-d, 62 bits; index: int64 [n], positions in the flat tensor. Returns float32 [n].
    """
    mixed = _mix((index & _LOW_32) ^ (key & _LOW_31))
    mixed = _mix(mixed ^ (key >> 31) ^ (index >> 32))
    return (mixed >> 8).to(torch.float32) * 2.0**-24


def _mix(bits: torch.Tensor) -> torch.Tensor:
    bits = bits ^ (bits >> 16)
    bits = (bits * 0x21F0AAAD) & _LOW_32
    bits = bits ^ (bits >> 15)
    bits = (bits * 0x735A2D97) & _LOW_32
    return bits ^ (bits >> 15)

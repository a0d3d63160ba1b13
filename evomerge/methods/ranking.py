"""Which entries of a tensor are its largest, found exactly and piece by piece.

A tensor of one piece is sorted. In larger ones entries are counted by the bits of their float32
magnitude, first by the upper 16, then by the lower 15 where a wanted count falls, and at last by
index among equal ones: three passes, no sort, and no more memory than a piece and the counters,
however large the tensor.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import torch

Pieces = Callable[[], Iterable[torch.Tensor]]
"""Yields the magnitudes of a tensor, float32 [≤ n], none negative, finite, in order of the flat
index; asked up to four times."""

_LOW_BITS = 15
_LOW = 1 << _LOW_BITS
_HIGH = 1 << (31 - _LOW_BITS)
_INDEXES = 1 << 32  # more than any tensor has elements


def kept_elements(density: float, elements: int) -> int:
    """density · elements as the nearest whole number, a half upwards."""
    return math.floor(density * elements + 0.5)


def ends_of_largest(pieces: Pieces, counts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Magnitude and flat index of the last entry among the `count` largest, for each count.

    Equal magnitudes rank by ascending index. Returns float32 and int64 [counts] on the CPU;
    (inf, -1) for a count of 0.
    """
    wanted = torch.tensor(counts, dtype=torch.int64)
    some = wanted > 0
    ends = torch.full(wanted.shape, math.inf)
    last_indexes = torch.full(wanted.shape, -1)
    if some.any():
        first, *more = islice(pieces(), 2)
        if not more:
            order = torch.sort(first, descending=True, stable=True)
            last = (wanted[some] - 1).to(first.device)
            ends[some], last_indexes[some] = (each[last].cpu() for each in order)
            return ends, last_indexes
        bits, place = _end_bits(pieces, wanted[some])
        ends[some] = bits.to(torch.int32).view(torch.float32)
        last_indexes[some] = _indexes(pieces, bits, place)
    return ends, last_indexes


def _end_bits(pieces: Pieces, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bits of each end, and which of the entries with these bits it is, from 1; int64."""
    coarse = torch.zeros(_HIGH, dtype=torch.int64)
    for piece in pieces():
        coarse += torch.bincount(_bits(piece) >> _LOW_BITS, minlength=_HIGH).cpu()
    high, left = _place(coarse.expand(len(wanted), -1), wanted)
    asked = torch.unique(high)
    rows = torch.full((_HIGH,), -1, dtype=torch.int32)
    rows[asked] = torch.arange(len(asked), dtype=torch.int32)
    fine = torch.zeros(len(asked) * _LOW, dtype=torch.int64)
    for piece in pieces():
        bits = _bits(piece)
        row = rows.to(bits.device)[bits >> _LOW_BITS]
        here = row >= 0
        cells = row[here] * _LOW + (bits[here] & (_LOW - 1))
        fine += torch.bincount(cells, minlength=len(fine)).cpu()
    low, place = _place(fine.view(-1, _LOW)[rows[high].long()], left)
    return (high << _LOW_BITS) + low, place


def _place(counted: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row, the column of the wanted-th largest entry, and its place in it from 1."""
    found, left = [], []
    for row, number in zip(counted, wanted.tolist(), strict=True):
        above = row.flip(0).cumsum(0)
        column = int(torch.searchsorted(above, number))
        found.append(len(row) - 1 - column)
        left.append(number - (int(above[column - 1]) if column else 0))
    return torch.tensor(found), torch.tensor(left)


def _indexes(pieces: Pieces, bits: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Flat index of the place-th entry, from 1, that has these bits."""
    left, found = place.tolist(), torch.full(bits.shape, -1)
    ends, which = torch.unique(bits, return_inverse=True)
    start = 0
    for piece in pieces():
        own = _bits(piece)
        limits = ends.to(own.device, torch.int32)
        cell = torch.searchsorted(limits, own, out_int32=True).clamp_(max=len(ends) - 1)
        equal = limits[cell] == own
        counted = torch.bincount(cell[equal], minlength=len(ends)).tolist()
        for i, end in enumerate(which.tolist()):
            if 0 < left[i] <= counted[end]:
                same = (own == int(ends[end])).nonzero().flatten()
                found[i] = start + int(same[left[i] - 1])
            left[i] -= counted[end]
        start += len(piece)
    return found


def ranks_among(
    magnitudes: torch.Tensor, start: int, ends: torch.Tensor, last_indexes: torch.Tensor
) -> torch.Tensor:
    """Per entry of a piece, how many of the selections that `ends_of_largest` found leave it out.

    start: flat index of the piece's first entry. The counts of the ends must ascend.
    """
    device = magnitudes.device
    places = torch.arange(start, start + len(magnitudes), device=device)
    own = _keys(magnitudes, places)
    limits = _keys(ends.clamp(max=torch.finfo(torch.float32).max), last_indexes)
    limits = torch.where(ends.isinf(), torch.iinfo(torch.int64).max, limits)
    return len(ends) - torch.searchsorted(limits.flip(0).to(device), own, right=True)


def _keys(magnitudes: torch.Tensor, indexes: torch.Tensor) -> torch.Tensor:
    return _bits(magnitudes).long() * _INDEXES + (_INDEXES - 1 - indexes)


def _bits(magnitudes: torch.Tensor) -> torch.Tensor:
    # The bits of floats that are not negative order as the floats do; + 0.0 has -0.0 equal 0.0.
    return (magnitudes + 0.0).view(torch.int32)

"""What is known of a tensor before any candidate, computed from the tensors themselves.

Inner products come from one pass in float64 over all operands; trimming thresholds from one sort
per source, of which only the ends of a grid of densities are kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement

import torch

from evomerge.errors import CandidateError

GRID = 100
"""Ends at densities 0, 1/GRID, …, 1 are kept in a table; those between are found when asked for."""

_ROW = 2**14  # elements that torch sums in one thread, so that the thread count changes no bit
_CHUNK = 64 * _ROW  # elements of which all operands are held in float64 at a time
_LARGEST = 0x7FFFFFFF  # the largest int32

End = tuple[float, int]
"""Where a trimmed task vector ends: (magnitude, last_index), see `Statistics.threshold`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DensityTable:
    """The ends of one task vector on the grid of densities: 1.2 kB, whatever the tensor's size."""

    magnitudes: torch.Tensor
    """float32 [GRID + 1], on the CPU."""
    last_indexes: torch.Tensor
    """int64 [GRID + 1], on the CPU."""

    def end(self, cell: int) -> End:
        """The end at density cell/GRID."""
        return self.magnitudes[cell].item(), int(self.last_indexes[cell].item())


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStatistics:
    """The `Statistics` of one tensor, computed from its operands when asked for.

    Results are put into the three dictionaries. They hold for every recipe with these operands:
    a caller that keeps them, or fills them beforehand, computes nothing twice.
    """

    operands: tuple[torch.Tensor, ...]
    """The base, then the sources: of one shape and device, any dtype."""
    keys: tuple[int, ...] = ()
    """One 62-bit mask key per source; only methods with masks ask for them."""
    grams: dict[tuple[int, int], float] = field(default_factory=dict)
    """Inner products of the operands (i, j), i ≤ j."""
    tables: dict[int, DensityTable] = field(default_factory=dict)
    """Ends on the grid, by source counted from 1."""
    ends: dict[tuple[int, int], End] = field(default_factory=dict)
    """Ends beside the grid, by source and number of elements kept."""

    @property
    def elements(self) -> int:
        """Number of elements of the tensor."""
        return self.operands[0].numel()

    @property
    def sources(self) -> int:
        """Number of sources."""
        return len(self.operands) - 1

    def gram(self, first: int, second: int) -> float:
        """Inner product of two operands; the first call computes those of all pairs in one pass."""
        pair = (min(first, second), max(first, second))
        if pair not in self.grams:
            self.grams.update(inner_products(self.operands))
        return self.grams[pair]

    def threshold(self, source: int, density: float) -> End:
        """See `Statistics.threshold`. CandidateError where the task vector has NaN or infinity.

        The first density on the grid costs one sort, others then nothing; a density beside the
        grid costs a sort of its own, once.
        """
        kept = kept_elements(density, self.elements)
        cell = round(density * GRID)
        if kept == kept_elements(cell / GRID, self.elements):
            if source not in self.tables:
                grid = [kept_elements(c / GRID, self.elements) for c in range(GRID + 1)]
                magnitudes, last_indexes = self._ends(source, grid)
                self.tables[source] = DensityTable(magnitudes=magnitudes, last_indexes=last_indexes)
            return self.tables[source].end(cell)
        if (source, kept) not in self.ends:
            magnitudes, last_indexes = self._ends(source, [kept])
            self.ends[source, kept] = (magnitudes.item(), int(last_indexes.item()))
        return self.ends[source, kept]

    def key(self, source: int) -> int:
        """62-bit key of the source's random mask."""
        return self.keys[source - 1]

    def _ends(self, source: int, counts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        base, tensor = (self.operands[i].detach().flatten().float() for i in (0, source))
        magnitudes = (tensor - base).abs_()
        if self.elements and not magnitudes.max().isfinite():
            raise CandidateError(
                f"source {source} minus the base has NaN or infinite entries, which cannot be"
                " ranked by magnitude; check that source's file, or leave the source out"
            )
        return ends_of_largest(magnitudes, counts)


def kept_elements(density: float, elements: int) -> int:
    """density · elements as the nearest whole number, a half upwards."""
    return math.floor(density * elements + 0.5)


def ends_of_largest(
    magnitudes: torch.Tensor, counts: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Magnitude and flat index of the last element among the `count` largest, for each count.

    magnitudes: float32 [n], none negative, finite; equal ones rank by ascending index. Returns
    float32 and int64 [counts] on the CPU; (inf, -1) for a count of 0. One sort; needs 20 bytes
    per element on top.
    """
    # The bits of floats that are not negative order as the floats do, and torch's stable sort of
    # integers, ascending, is a radix sort: twice as fast on a CPU as its descending sort of floats.
    order = torch.sort(_LARGEST - magnitudes.view(torch.int32), stable=True).indices
    wanted = torch.tensor(counts)
    some = wanted > 0
    last = order[(wanted[some] - 1).to(order.device)]
    ends = torch.full(wanted.shape, math.inf)
    last_indexes = torch.full(wanted.shape, -1)
    ends[some] = magnitudes[last].cpu()
    last_indexes[some] = last.cpu()
    return ends, last_indexes


def inner_products(operands: Sequence[torch.Tensor]) -> dict[tuple[int, int], float]:
    """⟨x_i, x_j⟩ of flattened tensors for all i ≤ j, in float64, the same for any thread count."""
    flat = [operand.detach().flatten() for operand in operands]
    pairs = list(combinations_with_replacement(range(len(flat)), 2))
    partial_sums: dict[tuple[int, int], list[float]] = {pair: [] for pair in pairs}
    for pieces in zip(*(torch.split(operand, _CHUNK) for operand in flat), strict=True):
        doubles = [_rows(piece.double()) for piece in pieces]
        for i, j in pairs:
            partial_sums[i, j] += (doubles[i] * doubles[j]).sum(dim=1).tolist()
    return {pair: math.fsum(sums) for pair, sums in partial_sums.items()}


def _rows(piece: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(piece, (0, -len(piece) % _ROW)).view(-1, _ROW)

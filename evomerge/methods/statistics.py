"""What is known of a tensor before any candidate, computed from the tensors themselves.

Inner products come from one pass in float64 over all operands; trimming thresholds from one sort
per source, of which only the ends of a grid of densities are kept.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations_with_replacement

import torch

from evomerge.errors import CandidateError
from evomerge.methods.method import Once

GRID = 100
"""Ends at densities 0, 1/GRID, …, 1 are kept in a table; those between are found when asked for."""

_ROW = 2**14  # elements that torch sums in one thread, so that the thread count changes no bit
_CHUNK = 64 * _ROW  # elements of which all operands are held in float64 at a time
_LARGEST = 0x7FFFFFFF  # the largest int32

End = tuple[float, int]
"""Where a trimmed task vector ends: (magnitude, last_index), see `Statistics.threshold`."""


Compute = Callable[[], Mapping[str, torch.Tensor]]
Keep = Callable[[str, tuple[int, ...], Compute], Mapping[str, torch.Tensor]]
"""(kind, of, compute) -> the result of `compute`, now or when it was first asked for."""


def in_memory() -> Keep:
    """A `Keep` that lasts as long as it is referred to."""
    known: dict[tuple[str, tuple[int, ...]], Mapping[str, torch.Tensor]] = {}

    def keep(kind: str, of: tuple[int, ...], compute: Compute) -> Mapping[str, torch.Tensor]:
        if (kind, of) not in known:
            known[kind, of] = compute()
        return known[kind, of]

    return keep


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStatistics:
    """The `Statistics` of one tensor, computed from its operands when asked for.

    Results go through `keep`. They hold for every recipe with these operands: a caller that keeps
    them computes nothing twice.
    """

    operands: tuple[torch.Tensor, ...]
    """The base, then the sources: of one shape and device, any dtype."""
    keys: tuple[int, ...] = ()
    """One 62-bit mask key per source; only methods with masks ask for them."""
    keep: Keep = field(default_factory=in_memory)

    @property
    def elements(self) -> int:
        """Number of elements of the tensor."""
        return self.operands[0].numel()

    @property
    def sources(self) -> int:
        """Number of sources."""
        return len(self.operands) - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.operands[0].shape)

    def once(self, kind: str, of: tuple[int, ...], compute: Once) -> Mapping[str, torch.Tensor]:
        """See `Statistics.once`."""

        def run() -> Mapping[str, torch.Tensor]:
            made = compute(*(self.operands[operand].detach() for operand in of))
            return {name: tensor.cpu() for name, tensor in made.items()}

        return self.keep(kind, of, run)

    def gram(self, first: int, second: int) -> float:
        """Inner product of two operands; the first call computes those of all pairs in one pass."""
        every = tuple(range(len(self.operands)))
        return float(self.once("gram", every, inner_products)["gram"][first, second])

    def threshold(self, source: int, density: float) -> End:
        """See `Statistics.threshold`. CandidateError where the task vector has NaN or infinity.

        The first density on the grid costs one sort, others then nothing; a density beside the
        grid costs a sort of its own, once.
        """
        count = kept_elements(density, self.elements)
        cell = round(density * GRID)
        if count == kept_elements(cell / GRID, self.elements):
            counts = [kept_elements(c / GRID, self.elements) for c in range(GRID + 1)]
            table = self.once("ends", (0, source), partial(_ends, counts=counts, source=source))
        else:
            cell, compute = 0, partial(_ends, counts=[count], source=source)
            table = self.once(f"end_{count}", (0, source), compute)
        return table["magnitudes"][cell].item(), int(table["last_indexes"][cell].item())

    def key(self, source: int) -> int:
        """62-bit key of the source's random mask."""
        return self.keys[source - 1]


def _ends(
    base: torch.Tensor, tensor: torch.Tensor, *, counts: Sequence[int], source: int
) -> dict[str, torch.Tensor]:
    magnitudes = (tensor.flatten().float() - base.flatten().float()).abs_()
    if magnitudes.numel() and not magnitudes.max().isfinite():
        raise CandidateError(
            f"source {source} minus the base has NaN or infinite entries, which cannot be"
            " ranked by magnitude; check that source's file, or leave the source out"
        )
    ends, last_indexes = ends_of_largest(magnitudes, counts)
    return {"magnitudes": ends, "last_indexes": last_indexes}


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


def inner_products(*operands: torch.Tensor) -> dict[str, torch.Tensor]:
    """{"gram": ⟨x_i, x_j⟩} of flattened tensors, float64; the same for any thread count."""
    flat = [operand.flatten() for operand in operands]
    pairs = list(combinations_with_replacement(range(len(flat)), 2))
    partial_sums: dict[tuple[int, int], list[float]] = {pair: [] for pair in pairs}
    for pieces in zip(*(torch.split(operand, _CHUNK) for operand in flat), strict=True):
        doubles = [_rows(piece.double()) for piece in pieces]
        for i, j in pairs:
            partial_sums[i, j] += (doubles[i] * doubles[j]).sum(dim=1).tolist()
    gram = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for (i, j), sums in partial_sums.items():
        gram[i, j] = gram[j, i] = math.fsum(sums)
    return {"gram": gram}


def _rows(piece: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(piece, (0, -len(piece) % _ROW)).view(-1, _ROW)

"""What is known of a tensor before any candidate, computed from the tensors themselves.

Inner products come from one pass in float64 over all operands; trimming thresholds from a
count of magnitudes per source, of which only the ends of a grid of densities are kept.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations_with_replacement

import torch

from evomerge.errors import CandidateError
from evomerge.methods.method import Inputs, Once
from evomerge.methods.ranking import ends_of_largest, kept_elements

GRID = 100
"""Ends at densities 0, 1/GRID, …, 1 are kept in a table; those between are found when asked for."""

_ROW = 2**14  # elements that torch sums in one thread, so that the thread count changes no bit
_CHUNK = 64 * _ROW  # elements of which all operands are held in float64 at a time

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


def _no_inputs(source: int) -> Inputs | None:
    return None


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
    inputs: Callable[[int], Inputs | None] = _no_inputs
    """What `activations` answers."""

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

        The first density on the grid costs three passes, others then nothing; a density beside
        the grid costs passes of its own, once.
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

    def activations(self, source: int) -> Inputs | None:
        """See `Statistics.activations`."""
        return self.inputs(source)


def _ends(
    base: torch.Tensor, tensor: torch.Tensor, *, counts: Sequence[int], source: int
) -> dict[str, torch.Tensor]:
    def pieces() -> Iterator[torch.Tensor]:
        for first, second in pieces_of(base, tensor):
            magnitudes = (second.float() - first.float()).abs_()
            if not magnitudes.max().isfinite():
                raise CandidateError(
                    f"source {source} minus the base has NaN or infinite entries, which cannot be"
                    " ranked by magnitude; check that source's file, or leave the source out"
                )
            yield magnitudes

    ends, last_indexes = ends_of_largest(pieces, counts)
    return {"magnitudes": ends, "last_indexes": last_indexes}


def pieces_of(*operands: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Equal parts of all operands, flat, of at most 2^20 elements, in order; none of none."""
    flat = [operand.flatten() for operand in operands]
    if len(flat[0]):
        yield from zip(*(torch.split(operand, _CHUNK) for operand in flat), strict=True)


def inner_products(*operands: torch.Tensor) -> dict[str, torch.Tensor]:
    """{"gram": ⟨x_i, x_j⟩} of flattened tensors, float64; the same for any thread count."""
    pairs = list(combinations_with_replacement(range(len(operands)), 2))
    partial_sums: dict[tuple[int, int], list[float]] = {pair: [] for pair in pairs}
    for pieces in pieces_of(*operands):
        doubles = [_rows(piece.double()) for piece in pieces]
        for i, j in pairs:
            partial_sums[i, j] += (doubles[i] * doubles[j]).sum(dim=1).tolist()
    gram = torch.zeros(len(operands), len(operands), dtype=torch.float64)
    for (i, j), sums in partial_sums.items():
        gram[i, j] = gram[j, i] = math.fsum(sums)
    return {"gram": gram}


def _rows(piece: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(piece, (0, -len(piece) % _ROW)).view(-1, _ROW)

"""SCE: select, calculate, erase (Wan et al. 2024, FuseChat, arXiv 2408.07990, section 3.3).

1. select: the share `select_topk` of the entries whose variance across the δ_i is largest
2. calculate: η_i = Σ δ_i² / Σ_j Σ δ_j² over the selected entries        (eq. 4)
3. erase: of each entry the δ_i whose sign is not that of Σ δ_i
w = w0 + λ · Σ η_i δ_i / Σ η_i over what is left
"""

from collections.abc import Iterator, Mapping
from functools import partial

import torch

from evomerge.errors import CandidateError
from evomerge.methods.method import Method, Operands, Parameter, Scalars, Statistics, Value
from evomerge.methods.parameters import LAMBDA, number
from evomerge.methods.ranking import ends_of_largest, kept_elements, ranks_among
from evomerge.methods.statistics import GRID, pieces_of
from evomerge.methods.sums import add
from evomerge.methods.trimming import cuts, largest

_SMALLEST = 1e-30  # a divisor where nothing is left


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    share = number(parameters, "select_topk")
    count, cell = kept_elements(share, statistics.elements), round(share * GRID)
    counts = [kept_elements(c / GRID, statistics.elements) for c in range(GRID + 1)]
    kind = "variance"
    if counts[cell] != count:
        counts, cell, kind = [count], 0, f"variance_{count}"
    every = tuple(range(statistics.sources + 1))
    table = statistics.once(kind, every, partial(_selections, counts=counts))
    energies = table["energies"][cell]
    total = float(energies.sum())
    end = float(table["magnitudes"][cell]), int(table["last_indexes"][cell])
    return {
        "weight": (energies / total).tolist() if total > 0 else [0.0] * statistics.sources,
        **cuts([end]),
        "lambda": [number(parameters, "lambda")],
    }


def _variance(deltas: tuple[torch.Tensor, ...]) -> torch.Tensor:
    mean = add(deltas) * (1 / len(deltas))
    return add(tuple((delta - mean) * (delta - mean) for delta in deltas))


def _selections(
    base: torch.Tensor, *sources: torch.Tensor, counts: list[int]
) -> dict[str, torch.Tensor]:
    """Ends of the largest variances, and energies float64 [counts, sources] of what is selected."""

    def variances() -> Iterator[torch.Tensor]:
        for piece in pieces_of(base, *sources):
            variance = _variance(_deltas(piece))
            if not variance.max().isfinite():
                raise CandidateError(
                    "the task vectors have NaN or infinite entries, whose variance cannot be "
                    "ranked; check the sources' files"
                )
            yield variance

    ends, last_indexes = ends_of_largest(variances, counts)
    energies = torch.zeros(len(counts) + 1, len(sources), dtype=torch.float64)
    start = 0
    for piece in pieces_of(base, *sources):
        deltas = _deltas(piece)
        first = ranks_among(_variance(deltas), start, ends, last_indexes)
        squares = torch.stack([delta.double().square() for delta in deltas], dim=1).cpu()
        energies.index_add_(0, first.cpu(), squares)
        start += len(first)
    energies = energies[:-1].cumsum(0)
    return {"magnitudes": ends, "last_indexes": last_indexes, "energies": energies}


def _deltas(operands: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    start = operands[0].float()
    return tuple(source.float() - start for source in operands[1:])


def _combine(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> torch.Tensor:
    weight = scalars["weight"]
    deltas = tuple(source - operands.base for source in operands.sources)
    selected = largest(_variance(deltas), operands, 0)
    sign = torch.where(add(deltas) >= 0, 1.0, -1.0)
    left = tuple(selected & (delta * sign > 0) for delta in deltas)
    kept = tuple(torch.where(here, weight[i] * deltas[i], 0.0) for i, here in enumerate(left))
    shares = tuple(torch.where(here, weight[i], 0.0) for i, here in enumerate(left))
    merged = add(kept) / (add(shares) + _SMALLEST)
    return operands.base + scalars["lambda"][0] * merged


SCE = Method(
    name="sce",
    title="SCE",
    paper="https://arxiv.org/abs/2408.07990",
    formula="w0 + λ Σ η_i δ_i / Σ η_i over entries of high variance with the majority's sign",
    parameters=(
        Parameter(
            name="select_topk",
            default=1.0,
            help="share of entries kept, by variance across the sources",
            low=0.1,
            minimum=0.0,
            maximum=1.0,
            step=0.01,
        ),
        LAMBDA,
    ),
    coefficients=_coefficients,
    combine=_combine,
    needs_base=True,
    needs=frozenset({"variances"}),
)

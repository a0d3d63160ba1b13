"""SCE: select, calculate, erase (Wan et al. 2024, FuseChat, arXiv 2408.07990, section 3.3).

1. select: the share `select_topk` of the entries whose variance across the δ_i is largest
2. calculate: η_i = Σ δ_i² / Σ_j Σ δ_j² over the selected entries        (eq. 4)
3. erase: of each entry the δ_i whose sign is not that of Σ δ_i
w = w0 + λ · Σ η_i δ_i / Σ η_i over what is left
"""

from collections.abc import Mapping
from functools import partial

import torch

from evomerge.methods.method import Method, Operands, Parameter, Scalars, Statistics, Value
from evomerge.methods.parameters import LAMBDA, number
from evomerge.methods.statistics import GRID, ends_of_largest, kept_elements
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
    start = base.flatten().float()
    deltas = tuple(source.flatten().float() - start for source in sources)
    variance = _variance(deltas)
    ends, last_indexes = ends_of_largest(variance, counts)
    order = torch.argsort(variance, descending=True, stable=True)
    sums = [delta[order].double().square().cumsum(0) for delta in deltas]
    wanted = torch.tensor(counts, device=order.device)
    energies = (
        torch.stack([torch.where(wanted > 0, total[wanted - 1], 0.0) for total in sums], dim=1)
        if len(order)
        else torch.zeros(len(counts), len(deltas))
    )
    return {"magnitudes": ends, "last_indexes": last_indexes, "energies": energies.cpu()}


def _combine(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> torch.Tensor:
    weight = scalars["weight"]
    deltas = tuple(source - operands.base for source in operands.sources)
    selected = largest(_variance(deltas), operands, scalars, 0)
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

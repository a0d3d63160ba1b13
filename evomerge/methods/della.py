"""DELLA: drops by magnitude (Deep, Bhardwaj and Poria 2024, arXiv 2406.11617, section 3).

Within each row of δ_i the entry of rank r (0: the smallest of n) is kept with probability
p = density − ε + 2ε · r/(n−1), and rescaled by 1/p, so that E[δ̂_i] = δ_i        (eq. 2 and 3)
`della_linear`: w = w0 + λ Σ p_i δ̂_i;  `della`: signs elected over p_i δ̂_i as in TIES

Where density + ε > 1 the largest entries have p = 1, where density − ε < 0 the smallest have 0.

Ranks are a statistic of one byte per entry: in 255 steps, so that p is right to within ε/255. The
same p decides and rescales, so the mean is exact. A tensor of one dimension is one row.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from evomerge.methods.election import NORMALIZE, divisors, elect
from evomerge.methods.masks import keys, uniform
from evomerge.methods.method import Method, Operands, Parameter, Scalars, Statistics, Value
from evomerge.methods.parameters import LAMBDA, WEIGHT, density, flag, number, numbers
from evomerge.methods.sums import add

_STEPS = 255


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    densities, epsilons = numbers(parameters, "density"), numbers(parameters, "epsilon")
    pairs = list(zip(densities, epsilons, strict=True))
    sources = range(1, statistics.sources + 1)
    return {
        "weight": numbers(parameters, "weight"),
        **keys([statistics.key(source) for source in sources], densities),
        "lowest": [share - epsilon for share, epsilon in pairs],
        "slope": [2 * epsilon / _STEPS for _, epsilon in pairs],
        "lambda": [number(parameters, "lambda")],
    }


def _coefficients_of_election(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    election = divisors(numbers(parameters, "weight"), flag(parameters, "normalize"))
    return {**_coefficients(parameters, statistics), **election}


def _ranks(parameters: Mapping[str, Value], statistics: Statistics) -> tuple[torch.Tensor, ...]:
    sources = range(1, statistics.sources + 1)
    return tuple(statistics.once("row_ranks", (0, i), _row_ranks)["ranks"] for i in sources)


def _row_ranks(base: torch.Tensor, source: torch.Tensor) -> dict[str, torch.Tensor]:
    magnitudes = (source.float() - base.float()).abs()
    columns = magnitudes.shape[-1] if magnitudes.dim() else 1
    rows = magnitudes.view(magnitudes.numel() // max(1, columns), columns)
    ranks = torch.empty_like(rows, dtype=torch.uint8)
    last = columns - 1
    steps = torch.arange(last + 1, device=rows.device, dtype=torch.float32)
    steps = steps * (_STEPS / last) if last > 0 else steps + _STEPS / 2
    levels = (steps + 0.5).floor().clamp(max=_STEPS).to(torch.uint8)
    for row, magnitude in zip(ranks, rows, strict=True):
        row[torch.sort(magnitude, stable=True).indices] = levels
    return {"ranks": ranks.view(magnitudes.shape)}


def _survivors(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    kept = []
    for i, (source, ranks) in enumerate(zip(operands.sources, operands.aids, strict=True)):
        share = scalars["lowest"][i] + scalars["slope"][i] * ranks.to(torch.float32)
        share = torch.clamp(share, max=1.0)
        vote = scalars["weight"][i] * (source - operands.base) / share
        kept.append(torch.where(uniform(operands, scalars, i) < share, vote, 0.0))
    return tuple(kept)


def _combine_linear(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return operands.base + scalars["lambda"][0] * add(_survivors(operands, scalars))


def _combine(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return operands.base + scalars["lambda"][0] * elect(_survivors(operands, scalars), scalars)


_PARAMETERS = (
    WEIGHT,
    density(0.5),
    Parameter(
        name="epsilon",
        default=0.15,
        help="half the window of keep-probabilities around the density",
        high=0.3,
        minimum=0.0,
        maximum=0.5,
        per_source=True,
        shared=True,
        searched=False,
    ),
    LAMBDA,
)

DELLA = Method(
    name="della",
    title="DELLA",
    paper="https://arxiv.org/abs/2406.11617",
    formula="w0 + λ Σ of the p_i m_i δ_i / P(m_i) that have the elected sign; P by rank in the row",
    parameters=(*_PARAMETERS, replace(NORMALIZE, default=False)),
    coefficients=_coefficients_of_election,
    combine=_combine,
    aids=_ranks,
    needs_base=True,
    zero_is_absent=True,
    needs=frozenset({"mask", "row ranks"}),
)

DELLA_LINEAR = Method(
    name="della_linear",
    title="DELLA, summed",
    paper="https://arxiv.org/abs/2406.11617",
    formula="w0 + λ Σ p_i m_i δ_i / P(m_i); P by rank in the row",
    parameters=_PARAMETERS,
    coefficients=_coefficients,
    combine=_combine_linear,
    aids=_ranks,
    needs_base=True,
    zero_is_absent=True,
    needs=frozenset({"mask", "row ranks"}),
)

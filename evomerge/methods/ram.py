"""Reinforced Agent Merging (2026, arXiv 2601.13572).

An entry of δ_i counts where |δ_i| > ε. Entries that count in one source alone are kept, those that
count in several are averaged over these.
`ramplus`: unique entries of source i are amplified by 1 + r · min(ρ_i, α), with ρ_i the number of
its shared entries over that of its unique ones, tensor by tensor
w = w0 + λ · merged
"""

from collections.abc import Mapping
from functools import partial

import torch

from evomerge.methods.method import Method, Operands, Parameter, Scalars, Statistics, Value
from evomerge.methods.parameters import LAMBDA, number
from evomerge.methods.sums import add

_FEWEST = 1e-5  # unique entries, so that a source with none has a ratio


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    return {
        "epsilon": [number(parameters, "epsilon")],
        "unique": [1.0] * statistics.sources,
        "lambda": [number(parameters, "lambda")],
    }


def _coefficients_plus(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    epsilon = number(parameters, "epsilon")
    every = tuple(range(statistics.sources + 1))
    counts = statistics.once(f"overlap_{epsilon!r}", every, partial(_overlap, epsilon=epsilon))
    rate, most = number(parameters, "r"), number(parameters, "alpha")
    pairs = zip(counts["shared"].tolist(), counts["unique"].tolist(), strict=True)
    ratios = [shared / max(unique, _FEWEST) for shared, unique in pairs]
    amplified = [1 + rate * min(ratio, most) for ratio in ratios]
    return {**_coefficients(parameters, statistics), "unique": amplified}


def _overlap(base: torch.Tensor, *sources: torch.Tensor, epsilon: float) -> dict[str, torch.Tensor]:
    """Numbers of shared and of unique entries, int64 [sources]."""
    start = base.float()
    active = [(source.float() - start).abs() > epsilon for source in sources]
    count = torch.zeros_like(start)
    for one in active:
        count += one
    return {
        "shared": torch.stack([(one & (count > 1)).sum() for one in active]),
        "unique": torch.stack([(one & (count == 1)).sum() for one in active]),
    }


def _combine(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> torch.Tensor:
    epsilon = scalars["epsilon"][0]
    deltas = tuple(source - operands.base for source in operands.sources)
    counted = tuple(torch.where(delta.abs() > epsilon, 1.0, 0.0) for delta in deltas)
    count = add(counted)
    shared = add(tuple(one * delta for one, delta in zip(counted, deltas, strict=True)))
    unique = add(
        tuple(
            scalars["unique"][i] * (one * delta)
            for i, (one, delta) in enumerate(zip(counted, deltas, strict=True))
        )
    )
    merged = torch.where(count > 1, shared / torch.clamp(count, min=1.0), unique)
    return operands.base + scalars["lambda"][0] * merged


_EPSILON = Parameter(
    name="epsilon",
    default=1e-5,
    help="size above which an entry of a task vector counts",
    high=1e-3,
    minimum=0.0,
    searched=False,
)


def _bound(name: str, default: float, text: str) -> Parameter:
    return Parameter(name=name, default=default, help=text, minimum=0.0)


RAM = Method(
    name="ram",
    title="Reinforced Agent Merging (RAM)",
    paper="https://arxiv.org/abs/2601.13572",
    formula="w0 + λ (unique entries of the δ_i + mean of the shared ones)",
    parameters=(_EPSILON, LAMBDA),
    coefficients=_coefficients,
    combine=_combine,
    needs_base=True,
)

RAMPLUS = Method(
    name="ramplus",
    title="RAM+",
    paper="https://arxiv.org/abs/2601.13572",
    formula="w0 + λ ((1 + r min(ρ_i, α)) · unique entries of the δ_i + mean of the shared ones)",
    parameters=(
        _EPSILON,
        _bound("r", 0.1, "how much a source's overlap amplifies its unique entries"),
        _bound("alpha", 0.2, "overlap ratio at which the amplification stops growing"),
        LAMBDA,
    ),
    coefficients=_coefficients_plus,
    combine=_combine,
    needs_base=True,
    needs=frozenset({"overlaps"}),
)

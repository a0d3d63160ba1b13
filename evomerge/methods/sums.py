"""The two weighted sums that most methods end in, as elementwise passes.

Terms are added in the order of the sources, so that equal recipes round equally.
"""

from collections.abc import Mapping

import torch

from evomerge.methods.method import Operands


def add(terms: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Sum of one or more tensors of one shape, from left to right."""
    return sum(terms[1:], start=terms[0])


def weighted_sources(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Σ weight_i w_i: any method whose result lies in the span of its sources."""
    weight = scalars["weight"]
    return add(tuple(weight[i] * source for i, source in enumerate(operands.sources)))


def weighted_deltas(
    operands: Operands, scalars: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """weight_i δ_i for each source, with the task vector δ_i = w_i − w0."""
    weight = scalars["weight"]
    return tuple(weight[i] * (source - operands.base) for i, source in enumerate(operands.sources))


def span(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """base · w0 + Σ weight_i (w_i − base · w0), with base 1 (task vectors) or 0 (sources)."""
    share, weight = scalars["base"][0], scalars["weight"]
    start = share * operands.base
    return start + add(
        tuple(weight[i] * (source - start) for i, source in enumerate(operands.sources))
    )

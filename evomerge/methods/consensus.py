"""Consensus task arithmetic with TALL masks (Wang et al. 2024, arXiv 2405.07813, section 4).

Source i needs an entry where |δ_i| ≥ tall_lambda · |Σ_j δ_j − δ_i|        (eq. 3)
Entries that fewer than `agree` sources need are zeroed (eq. 5):
w = w0 + λ Σ p_i δ_i where at least `agree` do
"""

from collections.abc import Mapping

import torch

from evomerge.methods.method import Method, Operands, Parameter, Scalars, Statistics, Value
from evomerge.methods.parameters import LAMBDA, WEIGHT, number, numbers
from evomerge.methods.sums import add


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    return {
        "weight": numbers(parameters, "weight"),
        "tall": [number(parameters, "tall_lambda")],
        "agree": [number(parameters, "agree")],
        "lambda": [number(parameters, "lambda")],
    }


def _combine(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> torch.Tensor:
    deltas = tuple(source - operands.base for source in operands.sources)
    total, tall = add(deltas), scalars["tall"][0]
    needed = add(
        tuple(
            # NaN is needed, so that it stays in the result and is found.
            torch.where(delta.abs() < tall * (total - delta).abs(), 0.0, 1.0)
            for delta in deltas
        )
    )
    merged = add(tuple(scalars["weight"][i] * delta for i, delta in enumerate(deltas)))
    kept = torch.where(needed >= scalars["agree"][0], merged, 0.0)
    return operands.base + scalars["lambda"][0] * kept


CONSENSUS = Method(
    name="consensus",
    title="Consensus task arithmetic",
    paper="https://arxiv.org/abs/2405.07813",
    formula="w0 + λ Σ p_i δ_i where at least `agree` sources need the entry (TALL masks)",
    parameters=(
        WEIGHT,
        Parameter(
            name="tall_lambda",
            default=0.4,
            help="how large an entry must be, beside the others' sum, to be needed",
            low=0.2,
            high=0.6,
            minimum=0.0,
        ),
        Parameter(
            name="agree",
            default=2.0,
            help="sources that must need an entry",
            high=3.0,
            minimum=0.0,
            searched=False,
        ),
        LAMBDA,
    ),
    coefficients=_coefficients,
    combine=_combine,
    needs_base=True,
    minimum_sources=2,
)

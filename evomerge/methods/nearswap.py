"""NearSwap: moves towards the source by at most t per entry (Alchemonaut's nearswap, 2024).

w = w0 + clip(t / |δ|, 0, 1) δ, which is w0 + clip(δ, −t, t)
"""

from collections.abc import Mapping

import torch

from evomerge.methods.method import Method, Operands, Parameter, Scalars, Statistics, Value
from evomerge.methods.parameters import number


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    return {"t": [number(parameters, "t")]}


def _combine(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> torch.Tensor:
    t = scalars["t"][0]
    return operands.base + torch.clamp(operands.sources[0] - operands.base, min=-t, max=t)


NEARSWAP = Method(
    name="nearswap",
    title="NearSwap",
    paper="",
    formula="w0 + clip(δ, −t, t)",
    parameters=(
        Parameter(
            name="t",
            default=0.001,
            help="largest change of an entry",
            high=0.01,
            minimum=0.0,
            smooth=True,
        ),
    ),
    coefficients=_coefficients,
    combine=_combine,
    needs_base=True,
    maximum_sources=1,
)

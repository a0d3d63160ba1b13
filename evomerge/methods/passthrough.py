"""Passthrough: one source's tensor times a scale, w = scale · w_1; the piece of stacked models."""

from collections.abc import Mapping

from evomerge.methods.method import Method, Parameter, Scalars, Statistics, Value
from evomerge.methods.parameters import number
from evomerge.methods.sums import weighted_sources


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    return {"weight": [number(parameters, "scale")]}


PASSTHROUGH = Method(
    name="passthrough",
    title="Passthrough",
    paper="",
    formula="scale · w_1",
    parameters=(
        Parameter(
            name="scale",
            default=1.0,
            help="factor on the source's tensor",
            high=1.5,
            searched=False,
        ),
    ),
    coefficients=_coefficients,
    combine=weighted_sources,
    needs_base=False,
    maximum_sources=1,
)

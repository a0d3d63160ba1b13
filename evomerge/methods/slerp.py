"""Spherical linear interpolation (Shoemake 1985, "Animating rotation with quaternion curves").

w = sin((1−t)θ)/sin θ · a + sin(tθ)/sin θ · b, with cos θ = ⟨a, b⟩ / (‖a‖ ‖b‖)

a is the first source (t = 0) and b the second (t = 1), each as one flat vector, not normalised.
Where the angle says nothing, because the two are almost parallel or one is almost zero, the
result is the plain interpolation (1−t) a + t b.
"""

from collections.abc import Mapping

from evomerge.methods.method import Method, Parameter, Scalars, Statistics, Value
from evomerge.methods.parameters import number
from evomerge.methods.products import gram_of_sources
from evomerge.methods.sphere import slerp_weights
from evomerge.methods.sums import weighted_sources


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    weights = slerp_weights(number(parameters, "t"), gram_of_sources(statistics))
    return {"weight": weights.tolist()}


SLERP = Method(
    name="slerp",
    title="Spherical interpolation (SLERP)",
    paper="https://doi.org/10.1145/325165.325242",
    formula="sin((1−t)θ)/sin θ · a + sin(tθ)/sin θ · b",
    parameters=(
        Parameter(
            name="t",
            default=0.5,
            help="way from the first source (0) to the second (1)",
            minimum=0.0,
            maximum=1.0,
            smooth=True,
        ),
    ),
    coefficients=_coefficients,
    combine=weighted_sources,
    needs_base=False,
    minimum_sources=2,
    maximum_sources=2,
    needs=frozenset({"gram"}),
)

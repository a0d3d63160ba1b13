"""Spherical linear interpolation (Shoemake 1985, "Animating rotation with quaternion curves").

w = sin((1−t)θ)/sin θ · a + sin(tθ)/sin θ · b, with cos θ = ⟨a, b⟩ / (‖a‖ ‖b‖)

a is the first source (t = 0) and b the second (t = 1), each as one flat vector, not normalised.
Where the angle says nothing, because the two are almost parallel or one is almost zero, the
result is the plain interpolation (1−t) a + t b.
"""

import math
from collections.abc import Mapping

from evomerge.methods.method import Method, Parameter, Scalars, Statistics, Value
from evomerge.methods.parameters import number
from evomerge.methods.sums import weighted_sources

_PARALLEL = 0.9995  # |cos θ| above which sin θ is too small to divide by
_SMALLEST_NORM = 1e-8


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    t = number(parameters, "t")
    norm_a, norm_b = (math.sqrt(statistics.gram(i, i)) for i in (1, 2))
    if min(norm_a, norm_b) <= _SMALLEST_NORM:
        return {"weight": (1 - t, t)}
    cosine = statistics.gram(1, 2) / (norm_a * norm_b)
    if abs(cosine) > _PARALLEL:
        return {"weight": (1 - t, t)}
    theta = math.acos(cosine)
    return {"weight": [math.sin(x * theta) / math.sin(theta) for x in (1 - t, t)]}


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
        ),
    ),
    coefficients=_coefficients,
    combine=weighted_sources,
    needs_base=False,
    minimum_sources=2,
    maximum_sources=2,
    needs=frozenset({"gram"}),
)

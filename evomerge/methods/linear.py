"""Linear combination, the "model soup" (Wortsman et al. 2022, arXiv 2203.05482, section 2).

w = Σ p_i w_i, divided by Σ p_i where `normalize`
"""

from collections.abc import Mapping

from evomerge.errors import CandidateError
from evomerge.methods.method import Method, Parameter, Scalars, Statistics, Value
from evomerge.methods.parameters import WEIGHT, flag, numbers
from evomerge.methods.sums import weighted_sources

_SMALLEST_SUM = 1e-6


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    weights = numbers(parameters, "weight")
    if not flag(parameters, "normalize"):
        return {"weight": weights}
    total = sum(weights)
    if abs(total) < _SMALLEST_SUM:
        raise CandidateError(
            f"linear: the weights {weights} sum to {total:g}, too near zero to divide by;"
            f" a sum of at least {_SMALLEST_SUM:g} is needed, or normalize: false"
        )
    return {"weight": [weight / total for weight in weights]}


LINEAR = Method(
    name="linear",
    title="Linear (model soup)",
    paper="https://arxiv.org/abs/2203.05482",
    formula="Σ p_i w_i, ÷ Σ p_i if normalize",
    parameters=(
        WEIGHT,
        Parameter(
            name="normalize",
            default=True,
            help="divide by the sum of the weights",
            searched=False,
        ),
    ),
    coefficients=_coefficients,
    combine=weighted_sources,
    needs_base=False,
    zero_is_absent=True,
)

"""NuSLERP: spherical interpolation by two weights, of task vectors or sources, whole or by row.

t = p_2 / (p_1 + p_2); then SLERP (see `slerp`) of δ_1 and δ_2, added to the base, or of w_1 and w_2
where `task_vectors` is false. `by_row` (or `by_column`) interpolates each row of a matrix apart.
Unlike `slerp`, it is spherical down to angles of 1e-6: weights of norms are that nearly parallel.
"""

from collections.abc import Mapping

from evomerge.errors import CandidateError
from evomerge.methods.method import Method, Parameter, Scalars, Statistics, Value
from evomerge.methods.parameters import WEIGHT, flag, numbers
from evomerge.methods.products import gram_by, gram_of_all, gram_of_deltas
from evomerge.methods.sphere import slerp_weights
from evomerge.methods.sums import span

_SMALLEST_SUM = 1e-6
_PARALLEL = 1 - 1e-12  # |cos θ| above which the angle is lost in the rounding of inner products


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    first, second = numbers(parameters, "weight")
    if abs(first + second) < _SMALLEST_SUM:
        raise CandidateError(
            f"nuslerp: the weights {first:g} and {second:g} sum to almost zero; expected a sum of"
            f" at least {_SMALLEST_SUM:g} in size"
        )
    by_row, by_column = flag(parameters, "by_row"), flag(parameters, "by_column")
    if by_row and by_column:
        raise CandidateError("nuslerp: by_row and by_column are both true; expected one of them")
    apart = (by_row or by_column) and len(statistics.shape) == 2
    gram = gram_by(statistics, int(not by_row)) if apart else gram_of_all(statistics)
    deltas = flag(parameters, "task_vectors")
    weights = slerp_weights(
        second / (first + second), gram_of_deltas(gram) if deltas else gram[1:, 1:], _PARALLEL
    )
    if apart:
        shaped = weights.float().unsqueeze(-1 if by_row else 1)
        return {"base": [float(deltas)], "weight": shaped}
    return {"base": [float(deltas)], "weight": weights.tolist()}


def _flag(name: str, default: bool, text: str) -> Parameter:
    return Parameter(name=name, default=default, help=text, searched=False)


NUSLERP = Method(
    name="nuslerp",
    title="NuSLERP",
    paper="https://doi.org/10.1145/325165.325242",
    formula="w0 + SLERP(δ_1, δ_2) at t = p_2 / (p_1 + p_2)",
    parameters=(
        WEIGHT,
        _flag("task_vectors", True, "interpolate w_i − w0 instead of w_i"),
        _flag("by_row", False, "each row of a matrix by its own angle"),
        _flag("by_column", False, "each column of a matrix by its own angle"),
    ),
    coefficients=_coefficients,
    combine=span,
    needs_base=True,
    minimum_sources=2,
    maximum_sources=2,
    needs=frozenset({"gram"}),
)

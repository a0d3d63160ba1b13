"""Parameters: the rows that several methods share, the check of a recipe's values, their readers.

A reader takes one value out of checked parameters in the type that its method expects.
"""

import math
from collections.abc import Mapping, Sequence

from evomerge.errors import UserError, did_you_mean
from evomerge.methods.method import Method, Parameter, Value

WEIGHT = Parameter(
    name="weight",
    default=1.0,
    help="how much of each source",
    high=1.2,
    per_source=True,
    smooth=True,
)

LAMBDA = Parameter(
    name="lambda",
    default=1.0,
    help="scale of the merged task vector",
    high=1.5,
    searched=False,
    smooth=True,
)


def density(default: float) -> Parameter:
    """The row of `density`, whose default each paper sets."""
    return Parameter(
        name="density",
        default=default,
        help="share of each task vector's entries that is kept",
        low=0.1,
        minimum=0.0,
        maximum=1.0,
        per_source=True,
        shared=True,
        step=0.01,
    )


def number(parameters: Mapping[str, Value], name: str) -> float:
    """A checked parameter that is one number."""
    value = parameters[name]
    assert isinstance(value, float)
    return value


def numbers(parameters: Mapping[str, Value], name: str) -> tuple[float, ...]:
    """A checked parameter that has one number per source."""
    value = parameters[name]
    assert isinstance(value, tuple)
    return value


def flag(parameters: Mapping[str, Value], name: str) -> bool:
    """A checked parameter that is true or false."""
    value = parameters[name]
    assert isinstance(value, bool)
    return value


def check_parameters(method: Method, given: Mapping[str, object], sources: int) -> dict[str, Value]:
    """Every parameter of the method, in its row's order: `given`, else its default.

    One number for a parameter that is per source stands for all of them. UserError for an unknown
    name, a value of another kind or outside the parameter's bounds, and a wrong number of values
    or of sources.
    """
    most = method.maximum_sources or sources
    if not method.minimum_sources <= sources <= most:
        upper = "or more" if method.maximum_sources is None else f"to {method.maximum_sources}"
        raise UserError(
            f"method '{method.name}' got {sources} source(s), expected"
            f" {method.minimum_sources} {upper}; change the list of sources or the method"
        )
    known = [parameter.name for parameter in method.parameters]
    for name in given:
        if name not in known:
            raise UserError(
                f"method '{method.name}' has no parameter '{name}': {did_you_mean(name, known)}"
            )
    return {
        parameter.name: _value(
            method.name, parameter, given.get(parameter.name, parameter.default), sources
        )
        for parameter in method.parameters
    }


def _value(method: str, parameter: Parameter, given: object, sources: int) -> Value:
    where = f"parameter '{parameter.name}' of method '{method}'"
    if isinstance(parameter.default, bool):
        if not isinstance(given, bool):
            raise UserError(f"{where} is {given!r}, expected true or false")
        return given
    if not parameter.per_source:
        return _number(where, parameter, given)
    if not isinstance(given, Sequence) or isinstance(given, str):
        return (_number(where, parameter, given),) * sources
    if len(given) != sources:
        raise UserError(
            f"{where} has {len(given)} value(s) {list(given)} for {sources} source(s),"
            " expected one per source, or one number for all"
        )
    return tuple(_number(where, parameter, value) for value in given)


def _number(where: str, parameter: Parameter, given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        kind = "a number or one number per source" if parameter.per_source else "a number"
        raise UserError(f"{where} is {given!r}, expected {kind}")
    if not math.isfinite(given):
        raise UserError(f"{where} is {given}, expected a finite number")
    if not parameter.minimum <= given <= parameter.maximum:
        raise UserError(
            f"{where} is {given}, expected a number from"
            f" {parameter.minimum:g} to {parameter.maximum:g}"
        )
    return float(given)

"""Parameters as mergekit writes them: numbers, gradients over layers, filters by tensor name."""

from collections.abc import Iterable, Mapping
from typing import Any


def setting(places: Iterable[Mapping[str, Any]], key: str, tensor: str, depth: float) -> Any:
    """The first of the places that says something of `key` for the tensor; None where none does.

    depth: from 0 at the slice's first layer to 1 at its last.
    """
    for given in places:
        if key in given:
            value = _evaluated(given[key], tensor, depth)
            if value is not None:
                return value
    return None


def _evaluated(given: Any, tensor: str, depth: float) -> Any:
    if isinstance(given, dict):
        given = [given]
    if not isinstance(given, list):
        return _plain(given)
    if any(isinstance(each, dict) for each in given):
        for each in given:
            wanted = each.get("filter")
            if wanted in (None, "*") or wanted in tensor:
                return _evaluated(each["value"], tensor, depth)
        return None
    return _gradient([_plain(each) for each in given], depth)


def _gradient(points: list[Any], depth: float) -> Any:
    """Straight lines between numbers; steps between flags."""
    at = depth * (len(points) - 1)
    low = min(int(at), len(points) - 1)
    if any(isinstance(each, (bool, str)) for each in points):
        return points[low]
    high = min(low + 1, len(points) - 1)
    return points[low] + (at - low) * (points[high] - points[low])


def _plain(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as a string."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value

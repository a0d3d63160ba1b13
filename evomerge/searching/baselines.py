"""The plain merges that anyone would try first: the first trials of every study."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from evomerge.methods import METHODS
from evomerge.recipe import BASE, ParameterValue, Recipe, Rule

SCALES = (0.3, 0.5, 1.0)
"""Weights of every source in the first task arithmetic baselines: the paper's, the middle, and
the plain sum."""
LADDER = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2)
"""Weights on which further ones follow: those beside the best, until the best has both."""


USUAL = ("slerp", "ties", "dare_linear", "dare_ties")
"""Methods that every search is compared with."""


def baselines(template: Recipe, methods: Sequence[str] = ()) -> dict[str, Recipe]:
    """Name -> recipe: base, every source alone, uniform linear, task arithmetic at a few scales,
    and other methods at their papers' defaults where the number of sources allows it: those that
    anyone would try, and those of the search space.
    """
    names = tuple(template.sources)
    found = {BASE: whole(template, "passthrough", (BASE,))}
    found |= {name: whole(template, "passthrough", (name,)) for name in names}
    found["linear"] = whole(template, "linear", names)
    for scale in SCALES:
        found[_scaled(scale)] = _sum(template, names, scale)
    for name in dict.fromkeys((*USUAL, *methods)):
        method = METHODS[name]
        fits = method.minimum_sources <= len(names) <= (method.maximum_sources or len(names))
        if fits and name not in ("passthrough", "linear", "task_arithmetic"):
            found[name] = whole(template, name, names)
    return found


def further_baselines(template: Recipe, values: Mapping[str, float | None]) -> dict[str, Recipe]:
    """Name -> recipe of the baselines that follow from those before; none at the end.

    First the scales of task arithmetic beside the best one, then, of three or more sources, the
    best one without each source. values: name of a baseline -> its value; None where it failed.
    """
    names = tuple(template.sources)
    tried = {scale: values[_scaled(scale)] for scale in LADDER if _scaled(scale) in values}
    scored = {scale: value for scale, value in tried.items() if value is not None}
    if not scored:
        return {}
    best = max(scored, key=lambda scale: scored[scale])
    at = LADDER.index(best)
    beside = [scale for scale in LADDER[max(0, at - 1) : at + 2] if scale not in tried]
    if beside:
        return {_scaled(scale): _sum(template, names, scale) for scale in beside}
    fewer = {
        f"{_scaled(best)} without {left}": _sum(template, [n for n in names if n != left], best)
        for left in names
        if len(names) >= 3
    }
    return {name: recipe for name, recipe in fewer.items() if name not in values}


def _scaled(scale: float) -> str:
    return f"task_arithmetic {scale:g}"


def _sum(template: Recipe, names: Sequence[str], scale: float) -> Recipe:
    weight: ParameterValue = dict.fromkeys(names, scale)
    return whole(template, "task_arithmetic", names, weight=weight)


def whole(template: Recipe, method: str, sources: Sequence[str], **given: ParameterValue) -> Recipe:
    """One rule for the whole model, every parameter written out."""
    values: dict[str, ParameterValue] = {}
    for row in METHODS[method].parameters:
        default = dict.fromkeys(sources, float(row.default)) if row.per_source else row.default
        values[row.name] = given.get(row.name, default)
    rule = Rule(method=method, sources=tuple(sources), parameters=values)
    return replace(template, rules=(rule,))

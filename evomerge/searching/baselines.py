"""The plain merges that anyone would try first: the first trials of every study."""

from collections.abc import Sequence
from dataclasses import replace

from evomerge.methods import METHODS
from evomerge.recipe import BASE, ParameterValue, Recipe, Rule

SCALES = (0.3, 0.5, 0.7, 1.0)
"""Weights of every source in the task arithmetic baselines."""


def baselines(template: Recipe) -> dict[str, Recipe]:
    """Name -> recipe: base, every source alone, uniform linear, task arithmetic at several scales,
    and every other method at its paper's defaults where the number of sources allows it.
    """
    names = tuple(template.sources)
    found = {BASE: _whole(template, "passthrough", (BASE,))}
    found |= {name: _whole(template, "passthrough", (name,)) for name in names}
    found["linear"] = _whole(template, "linear", names)
    for scale in SCALES:
        weight: ParameterValue = dict.fromkeys(names, scale)
        merged = _whole(template, "task_arithmetic", names, weight=weight)
        found[f"task_arithmetic {scale:g}"] = merged
    for method in METHODS.values():
        fits = method.minimum_sources <= len(names) <= (method.maximum_sources or len(names))
        if fits and method.name not in ("passthrough", "linear", "task_arithmetic"):
            found[method.name] = _whole(template, method.name, names)
    return found


def _whole(
    template: Recipe, method: str, sources: Sequence[str], **given: ParameterValue
) -> Recipe:
    """One rule for the whole model, every parameter written out."""
    values: dict[str, ParameterValue] = {}
    for row in METHODS[method].parameters:
        default = dict.fromkeys(sources, float(row.default)) if row.per_source else row.default
        values[row.name] = given.get(row.name, default)
    rule = Rule(method=method, sources=tuple(sources), parameters=values)
    return replace(template, rules=(rule,))

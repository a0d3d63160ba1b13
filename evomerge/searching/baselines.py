"""The plain merges that anyone would try first: the first trials of every study."""

from collections.abc import Sequence
from dataclasses import replace

from evomerge.methods import METHODS
from evomerge.recipe import BASE, ParameterValue, Recipe, Rule

SCALES = (0.3, 0.5, 0.7, 1.0)
"""Weights of every source in the task arithmetic baselines."""


USUAL = ("slerp", "ties", "dare_linear", "dare_ties")
"""Methods that every search is compared with."""


def baselines(template: Recipe, methods: Sequence[str] = ()) -> dict[str, Recipe]:
    """Name -> recipe: base, every source alone, uniform linear, task arithmetic at several scales,
    and other methods at their papers' defaults where the number of sources allows it: those that
    anyone would try, and those of the search space.
    """
    names = tuple(template.sources)
    found = {BASE: whole(template, "passthrough", (BASE,))}
    found |= {name: whole(template, "passthrough", (name,)) for name in names}
    found["linear"] = whole(template, "linear", names)
    for scale in SCALES:
        weight: ParameterValue = dict.fromkeys(names, scale)
        merged = whole(template, "task_arithmetic", names, weight=weight)
        found[f"task_arithmetic {scale:g}"] = merged
    for name in dict.fromkeys((*USUAL, *methods)):
        method = METHODS[name]
        fits = method.minimum_sources <= len(names) <= (method.maximum_sources or len(names))
        if fits and name not in ("passthrough", "linear", "task_arithmetic"):
            found[name] = whole(template, name, names)
    return found


def whole(template: Recipe, method: str, sources: Sequence[str], **given: ParameterValue) -> Recipe:
    """One rule for the whole model, every parameter written out."""
    values: dict[str, ParameterValue] = {}
    for row in METHODS[method].parameters:
        default = dict.fromkeys(sources, float(row.default)) if row.per_source else row.default
        values[row.name] = given.get(row.name, default)
    rule = Rule(method=method, sources=tuple(sources), parameters=values)
    return replace(template, rules=(rule,))

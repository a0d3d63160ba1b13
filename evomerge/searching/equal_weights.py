"""Which recipes make equal weights, although they are not the same recipe.

A recipe's fingerprint covers all that it says: sources that no rule uses, their names, a seed that
nothing draws from, the cut into rules. `weights_key` leaves out what has no effect, so that scores
are found again in another search, of more or fewer sources, another space or another seed. It errs
on the side of "different": recipes of one key make equal weights (but for the sign of zeros), and
recipes of two keys may do so too.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from evomerge.methods import METHODS
from evomerge.recipe import BASE, ParameterValue, Recipe, Rule


def without_absent(rule: Rule) -> Rule:
    """The rule without sources of weight 0, where its method says that they leave no trace.

    As it was where fewer sources than the method needs would be left.
    """
    method, weights = METHODS[rule.method], rule.parameters.get("weight")
    if not method.zero_is_absent or not isinstance(weights, Mapping):
        return rule
    kept = tuple(source for source in rule.sources if weights.get(source) != 0)
    if len(kept) == len(rule.sources) or len(kept) < method.minimum_sources:
        return rule
    return dataclasses.replace(
        rule,
        sources=kept,
        parameters={name: _of(value, kept) for name, value in rule.parameters.items()},
    )


def weights_key(recipe: Recipe) -> str:
    """16 hexadecimal digits; recipes that share them make equal weights."""
    rules = [_facts(without_absent(rule), recipe) for rule in recipe.rules]
    needs = {need for rule in recipe.rules for need in METHODS[rule.method].needs}
    contents = [{**rule, "where": None} for rule in rules]
    if all(content == contents[0] for content in contents):
        rules = contents[:1]  # all rules together cover the whole model
    facts: dict[str, Any] = {
        "base": _model(recipe, BASE),
        "dtype": recipe.dtype,
        "rules": rules,
        "stack": None
        if recipe.stack is None
        else [[_model(recipe, p.source), p.layers, p.scale] for p in recipe.stack],
    }
    if "mask" in needs:
        facts["seed"] = recipe.seed
    if "activations" in needs and recipe.calibration is not None:
        text = recipe.calibration
        facts["calibration"] = [text.sha256 or text.file, text.tokens, text.length]
    if recipe.vocabulary != BASE:  # tokens that all sources bring, used or not, have a part in it
        facts["vocabulary"] = recipe.vocabulary
        facts["sources"] = {name: _model(recipe, name) for name in recipe.sources}
    text_of_facts = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text_of_facts.encode()).hexdigest()[:16]


def _facts(rule: Rule, recipe: Recipe) -> dict[str, Any]:
    """What a rule does: defaults written out, models by their hashes."""
    method = METHODS[rule.method]
    named = "mask" in method.needs  # random masks depend on names
    where = [rule.layers, sorted(rule.parts) if rule.parts else None, rule.tensors]
    given = {row.name: rule.parameters.get(row.name, row.default) for row in method.parameters}
    zeros = _per_source(given.get("weight", 1.0), rule.sources)
    if method.zero_is_absent and method.needs_base and not any(zeros):
        rule = Rule(method="passthrough", sources=(BASE,))  # the base, and nothing added to it
        return {**_facts(rule, recipe), "where": where}
    return {
        "where": where,
        "method": rule.method,
        "sources": [[_model(recipe, source), source if named else None] for source in rule.sources],
        "parameters": {
            row.name: value
            if isinstance(value := given[row.name], bool)
            else _per_source(value, rule.sources if row.per_source else ("",))
            for row in method.parameters
        },
        "lines": None if rule.lines is None else [rule.lines.alpha, rule.lines.beta],
    }


def _model(recipe: Recipe, name: str) -> str:
    """The hash of a model's weights; its place where no hash is known, `merged` as it is."""
    if name != BASE and name not in recipe.sources:
        return name
    model = recipe.model(name)
    return model.sha256 or f"{model.path}@{model.revision}"


def _per_source(value: ParameterValue, sources: tuple[str, ...]) -> list[float]:
    if isinstance(value, dict):
        return [float(value.get(source, math.nan)) for source in sources]
    return [float(value)] * len(sources)


def _of(value: ParameterValue, sources: tuple[str, ...]) -> ParameterValue:
    return {s: v for s, v in value.items() if s in sources} if isinstance(value, dict) else value

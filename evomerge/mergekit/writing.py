"""A recipe as mergekit's merge YAML, where that can say it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evomerge.architectures import place
from evomerge.checkpoints.dequantised import open_checkpoint
from evomerge.checkpoints.locate import locate
from evomerge.errors import UserError
from evomerge.mergekit.reading import NAMES, WITHOUT_BASE
from evomerge.methods import look_up
from evomerge.methods.parameters import check_parameters
from evomerge.recipe import BASE, Recipe, Rule

_SAME_RESULT = (
    *("linear", "slerp", "nuslerp", "karcher", "model_stock", "task_arithmetic", "ties"),
    *("breadcrumbs", "breadcrumbs_ties", "sce", "ram", "ramplus", "nearswap", "passthrough"),
)
_FLAGS = ("task_vectors", "by_row", "by_column")


def to_mergekit(recipe: Recipe) -> str:
    """The YAML of a merge with equal tensors in float32; UserError that lists what has no words."""
    base = open_checkpoint(locate(recipe.base.path, recipe.base.revision))
    if problems := _problems(recipe):
        raise UserError("mergekit cannot express this recipe: " + "; ".join(problems))
    first = recipe.rules[0]
    rule_of = {name: _rule_of(name, recipe) for name in base.tensors}
    models: list[dict[str, Any]] = []
    whole: dict[str, Any] = {}
    values = {
        name: check_parameters(look_up(rule.method), _given(rule), len(rule.sources))
        for name, rule in rule_of.items()
    }
    for number, source in enumerate(first.sources):
        own: dict[str, Any] = {}
        for row in look_up(first.method).parameters:
            each = {name: parameters[row.name] for name, parameters in values.items()}
            if row.per_source:
                mine = {name: v[number] for name, v in each.items() if isinstance(v, tuple)}
                own[row.name] = _setting(mine)
            elif row.name not in _FLAGS:
                whole[row.name] = _setting(each)
        path = recipe.model(source).path
        models.append({"model": path, **({"parameters": own} if own else {})})
    flags = values[next(iter(values))]
    if first.method == "nuslerp" and (flags["by_row"] or flags["by_column"]):
        whole |= {"nuslerp_flatten": False, "nuslerp_row_wise": bool(flags["by_column"])}
    content: dict[str, Any] = {
        "merge_method": {ours: theirs for theirs, ours in NAMES.items()}.get(
            first.method, first.method
        )
    }
    if first.method == "slerp":
        content["base_model"] = recipe.model(first.sources[0]).path
    elif first.method not in WITHOUT_BASE or flags.get("task_vectors"):
        content["base_model"] = recipe.base.path
    content |= {"models": models, "parameters": whole}
    content |= {"dtype": "float32", "out_dtype": recipe.dtype}
    return yaml.safe_dump(content, sort_keys=False)


def _problems(recipe: Recipe) -> list[str]:
    found = []
    for rule in recipe.rules:
        label = rule.label()
        if rule.method not in _SAME_RESULT:
            random = "mask" in look_up(rule.method).needs
            why = "its random masks are others" if random else "it has no such method"
            found.append(f"{label}: {rule.method}: {why}")
        if rule.lines is not None:
            found.append(f"{label}: lines")
        weights = rule.parameters.get("weight", 1.0)
        numbers = weights.values() if isinstance(weights, dict) else [weights]
        if rule.method == "ties" and min(numbers) < 0:
            found.append(f"{label}: ties with a negative weight divides by another sum there")
        if rule.method in ("task_arithmetic", "ties") and BASE in rule.sources:
            found.append(f"{label}: the base among the sources of {rule.method}")
    methods = {rule.method for rule in recipe.rules}
    if len(methods) > 1:
        found.append(f"several methods in one merge: {', '.join(sorted(methods))}")
    if len({rule.sources for rule in recipe.rules}) > 1:
        found.append("other sources in other groups")
    return found


def _rule_of(tensor: str, recipe: Recipe) -> Rule:
    where = place(tensor)
    covering = [rule for rule in recipe.rules if rule.covers(where.layer, where.part, tensor)]
    if len(covering) != 1:
        raise UserError(f"tensor {tensor} is covered by {len(covering)} rules; expected one")
    return covering[0]


def _given(rule: Rule) -> dict[str, object]:
    return {
        name: tuple(value[source] for source in rule.sources) if isinstance(value, dict) else value
        for name, value in rule.parameters.items()
    }


def _setting(values: Mapping[str, Any]) -> Any:
    """One value, or a list of filters: by layer where all its tensors agree, else by tensor."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    by_layer: dict[int | None, dict[str, Any]] = {}
    for name, value in values.items():
        by_layer.setdefault(place(name).layer, {})[name] = value
    found = []
    for layer, inside in by_layer.items():
        if layer is not None and len(set(inside.values())) == 1:
            name = next(iter(inside))
            start = name[: name.index(f".{layer}.") + len(f".{layer}.")]
            found.append({"filter": start, "value": next(iter(inside.values()))})
        else:
            found += [{"filter": name, "value": value} for name, value in inside.items()]
    return found


def write_mergekit(recipe: Recipe, path: Path) -> None:
    """Writes the YAML file."""
    path.write_text(to_mergekit(recipe), encoding="utf-8")

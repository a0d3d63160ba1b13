"""A recipe as mergekit's merge YAML, where that can say it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evomerge.architectures import place
from evomerge.checkpoints.locate import locate
from evomerge.checkpoints.source import Checkpoint
from evomerge.errors import UserError
from evomerge.files import write_text
from evomerge.mergekit.correspondence import (
    ELECTIONS,
    FLAGS,
    NAMES,
    PARAMETERS,
    SAME_RESULT,
    WITHOUT_BASE,
)
from evomerge.mergekit.settings import setting
from evomerge.methods import look_up
from evomerge.methods.method import Value
from evomerge.methods.parameters import check_parameters
from evomerge.recipe import BASE, Model, Recipe, Rule

_WEIGHTED = ("linear", "task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties")
"""Methods in which a source of weight 0 is one that is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """How one tensor is made: parameters of the rule, and those that have one number per source."""

    layer: int | None
    part: str
    sources: tuple[str, ...]
    shared: Mapping[str, float | bool]
    own: Mapping[str, Mapping[str, float]]
    """Parameter -> source -> number."""


def to_mergekit(recipe: Recipe) -> str:
    """The YAML of a merge with equal tensors in float32; UserError that lists what has no words.

    Reads the names of the base's tensors.
    """
    if problems := list(_problems(recipe)):
        raise UserError("mergekit cannot express this recipe: " + "; ".join(problems))
    base = Checkpoint(locate(recipe.base.path, recipe.base.revision))
    last = max((place(name).layer or 0 for name in base.tensors), default=0)
    tensors = {name: _tensor(name, recipe, last) for name in base.tensors}
    method = recipe.rules[0].method
    anchor = _anchor(recipe, tensors)
    if method == "slerp" and anchor is not None:
        tensors = {name: _from(anchor, tensor) for name, tensor in tensors.items()}
    content: dict[str, Any] = {"merge_method": _theirs(method)}
    if anchor is not None:
        content["base_model"] = _written(recipe.model(anchor))
    listed = dict.fromkeys(source for tensor in tensors.values() for source in tensor.sources)
    if method in _WEIGHTED or len({tensor.sources for tensor in tensors.values()}) == 1:
        content["models"] = _models(recipe, tensors, listed)
    else:
        content["slices"] = _slices(recipe, tensors, anchor)
    content |= _whole(method, tensors)
    content |= {"dtype": "float32", "out_dtype": recipe.dtype}
    return yaml.safe_dump(content, sort_keys=False)


def write_mergekit(recipe: Recipe, path: Path) -> None:
    """Writes the YAML file."""
    write_text(path, to_mergekit(recipe))


def _problems(recipe: Recipe) -> Iterable[str]:
    for rule in recipe.rules:
        label = rule.label()
        if rule.method not in SAME_RESULT:
            random = "mask" in look_up(rule.method).needs
            why = "its random masks are others" if random else "it has no such method"
            yield f"{label}: {rule.method}: {why}"
        weights = rule.parameters.get("weight", 1.0)
        numbers = weights.values() if isinstance(weights, dict) else [weights]
        if rule.method in ELECTIONS and min(numbers) < 0:
            normalize = rule.parameters.get("normalize", rule.method == "ties")
            if normalize:
                yield f"{label}: {rule.method} with a negative weight divides by another sum there"
        scaled = rule.parameters.get("lambda", 1.0) != 1.0 or rule.lines is not None
        if scaled and rule.method in ("sce", "ram", "ramplus"):
            yield f"{label}: {rule.method} has no lambda there"
        deltas = rule.method not in WITHOUT_BASE or (
            rule.method == "nuslerp" and rule.parameters.get("task_vectors", True)
        )
        if deltas and BASE in rule.sources:
            yield f"{label}: the base among the sources of {rule.method}"
    methods = {rule.method for rule in recipe.rules}
    if len(methods) > 1:
        yield f"several methods in one merge: {', '.join(sorted(methods))}"
    flags = {
        tuple(rule.parameters.get(name) for name in FLAGS)
        for rule in recipe.rules
        if rule.method == "nuslerp"
    }
    if len(flags) > 1:
        yield "nuslerp of task vectors, by row or by column in some groups only"


def _tensor(name: str, recipe: Recipe, last: int) -> _Tensor:
    where = place(name)
    covering = [rule for rule in recipe.rules if rule.covers(where.layer, where.part, name)]
    if len(covering) != 1:
        raise UserError(f"tensor {name} is covered by {len(covering)} rules; expected one")
    rule = covering[0]
    given = check_parameters(look_up(rule.method), _given(rule), len(rule.sources))
    if rule.lines is not None and "lambda" in given:
        after = where.part in ("final_norm", "head")
        depth = float(after) if where.layer is None else where.layer / max(1, last)
        given["lambda"] = float(given["lambda"]) * (  # type: ignore[arg-type]
            rule.lines.alpha + rule.lines.beta * depth
        )
    own = {
        key: dict(zip(rule.sources, value, strict=True))
        for key, value in given.items()
        if isinstance(value, tuple)
    }
    shared = {key: value for key, value in given.items() if not isinstance(value, tuple)}
    return _Tensor(layer=where.layer, part=where.part, sources=rule.sources, shared=shared, own=own)


def _given(rule: Rule) -> dict[str, object]:
    return {
        name: tuple(value[source] for source in rule.sources) if isinstance(value, dict) else value
        for name, value in rule.parameters.items()
    }


def _anchor(recipe: Recipe, tensors: Mapping[str, _Tensor]) -> str | None:
    """What stands as base_model: the base, where it enters; in slerp one model of every pair."""
    rule = recipe.rules[0]
    if rule.method == "slerp":
        common = [s for s in rule.sources if all(s in t.sources for t in tensors.values())]
        if not common:
            raise UserError(
                "mergekit cannot express this recipe: slerp of pairs that have no model in common"
            )
        return common[0]
    if rule.method == "nuslerp":
        return BASE if next(iter(tensors.values())).shared["task_vectors"] else None
    return None if rule.method in WITHOUT_BASE else BASE


def _from(anchor: str, tensor: _Tensor) -> _Tensor:
    """The slerp as it is told from `anchor` on, at t = 0."""
    first, second = tensor.sources
    if first == anchor:
        return tensor
    t = 1.0 - float(tensor.shared["t"])
    return _Tensor(
        layer=tensor.layer, part=tensor.part, sources=(second, first), shared={"t": t}, own={}
    )


def _models(
    recipe: Recipe, tensors: Mapping[str, _Tensor], listed: Iterable[str]
) -> list[dict[str, Any]]:
    """The models of a slice or the whole merge, with their parameters over these tensors."""
    keys = next(iter(tensors.values())).own
    found = []
    for source in listed:
        absent = {"weight": 0.0}
        parameters = {
            key: _setting(
                {name: t.own[key].get(source, absent.get(key, 1.0)) for name, t in tensors.items()}
            )
            for key in keys
        }
        model: dict[str, Any] = {"model": _written(recipe.model(source))}
        found.append(model | ({"parameters": parameters} if parameters else {}))
    return found


def _slices(
    recipe: Recipe, tensors: Mapping[str, _Tensor], anchor: str | None
) -> list[dict[str, Any]]:
    """Runs of layers that are made of equal models."""
    of_layer: dict[int, tuple[str, ...]] = {}
    for tensor in tensors.values():
        if (
            tensor.layer is not None
            and of_layer.setdefault(tensor.layer, tensor.sources) != tensor.sources
        ):
            raise _inexpressible(f"layer {tensor.layer}: other sources in other parts")
    runs: list[tuple[int, int]] = []
    for layer in sorted(of_layer):
        if runs and of_layer[layer] == of_layer[runs[-1][0]]:
            runs[-1] = (runs[-1][0], layer + 1)
        else:
            runs.append((layer, layer + 1))
    first, last = (of_layer[runs[end][0]] for end in (0, -1))
    for tensor in tensors.values():
        if tensor.layer is None:
            after = tensor.part in ("final_norm", "head")
            fitting = last[: len(first)] if after else first
            if tensor.sources != fitting:
                where = "last" if after else "first"
                raise _inexpressible(f"{tensor.part}: other sources than in the {where} layer")
    return [
        {
            "sources": [
                {**model, "layer_range": list(run)}
                for model in (
                    *([{"model": _written(recipe.base)}] if anchor == BASE else []),
                    *_models(recipe, _within(tensors, run, runs), of_layer[run[0]]),
                )
            ]
        }
        for run in runs
    ]


def _within(
    tensors: Mapping[str, _Tensor], run: tuple[int, int], runs: list[tuple[int, int]]
) -> dict[str, _Tensor]:
    """Tensors of a run of layers, with the ends of the model in its first and last run."""
    found = {}
    for name, tensor in tensors.items():
        after = tensor.part in ("final_norm", "head")
        if tensor.layer is None:
            inside = run == (runs[-1] if after else runs[0])
        else:
            inside = run[0] <= tensor.layer < run[1]
        if inside:
            found[name] = tensor
    return found


def _inexpressible(what: str) -> UserError:
    return UserError(f"mergekit cannot express this recipe: {what}")


def _whole(method: str, tensors: Mapping[str, _Tensor]) -> dict[str, Any]:
    """Parameters of the whole merge."""
    keys = [key for key in next(iter(tensors.values())).shared if key in PARAMETERS[method]]
    whole = {key: _setting({name: t.shared[key] for name, t in tensors.items()}) for key in keys}
    flags = next(iter(tensors.values())).shared
    if method == "nuslerp" and (flags["by_row"] or flags["by_column"]):
        whole |= {"nuslerp_flatten": False, "nuslerp_row_wise": bool(flags["by_column"])}
    return {"parameters": whole} if whole else {}


def _setting(values: Mapping[str, Value]) -> Any:
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
    for name, value in values.items():
        if setting([{"": found}], "", name, 0.0) != value:
            raise _inexpressible(f"no filter tells {name} from other tensors")
    return found


def _theirs(method: str) -> str:
    return {ours: theirs for theirs, ours in NAMES.items()}.get(method, method)


def _written(model: Model) -> str:
    return f"{model.path}@{model.revision}" if model.revision else model.path

"""A recipe as mergekit's merge YAML, where that can say it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from evomerge.architectures import place, writes_to_residual
from evomerge.checkpoints.dequantised import open_checkpoint
from evomerge.checkpoints.locate import locate
from evomerge.checkpoints.tokenizer import read_vocabularies
from evomerge.errors import UserError
from evomerge.files import write_text
from evomerge.mergekit.correspondence import (
    ELECTIONS,
    FLAGS,
    NAMES,
    PER_MODEL,
    SAME_RESULT,
    WITHOUT_BASE,
)
from evomerge.mergekit.resolving import is_after
from evomerge.mergekit.runs import Made, Run, inexpressible, runs_of, with_ends
from evomerge.mergekit.settings import setting
from evomerge.methods import look_up
from evomerge.methods.method import Value
from evomerge.methods.parameters import check_parameters
from evomerge.methods.parameters import number as number_of
from evomerge.recipe import BASE, MERGED, UNION, Model, Piece, Recipe, Rule, format_layers

_WEIGHTED = ("linear", "task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties")
"""Methods in which a source of weight 0 is one that is not there."""


_OF_MODELS = {key for keys in PER_MODEL.values() for key in keys}


def to_mergekit(recipe: Recipe) -> str:
    """The YAML of a merge with equal tensors in float32; UserError that lists what has no words.

    Reads the names of the base's tensors.
    """
    if problems := list(_problems(recipe)):
        raise UserError("mergekit cannot express this recipe: " + "; ".join(problems))
    base = open_checkpoint(locate(recipe.base.path, recipe.base.revision))
    method = recipe.rules[0].method
    ends, layers = _laid_out(recipe, list(base.tensors))
    tensors = [*ends.values(), *(tensor for _, inside in layers for tensor in inside.values())]
    anchor = _anchor(recipe, tensors)

    def prepared(given: Mapping[str, Made]) -> dict[str, Made]:
        return {name: _prepared(method, each, anchor, union) for name, each in given.items()}

    union = tuple(dict.fromkeys(source for each in tensors for source in each.sources))
    ends, layers = prepared(ends), [(number, prepared(inside)) for number, inside in layers]
    content: dict[str, Any] = {"merge_method": _theirs(method)}
    if anchor is not None:
        content["base_model"] = _written(recipe.model(anchor))
    runs = runs_of(layers)
    if len(runs) == 1 and recipe.stack is None:
        everything = {**ends, **runs[0].tensors}
        content["models"] = _models(recipe, everything)
        content["parameters"] = _shared(everything)
    else:
        content["slices"] = [_slice(recipe, run, anchor) for run in with_ends(runs, ends)]
    flags = tensors[0].shared
    if method == "nuslerp" and (flags["by_row"] or flags["by_column"]):
        content.setdefault("parameters", {}).update(
            nuslerp_flatten=False, nuslerp_row_wise=bool(flags["by_column"])
        )
    content |= _tokenizer(recipe, base.folder)
    content |= {"dtype": "float32", "out_dtype": recipe.dtype}
    return yaml.safe_dump({k: v for k, v in content.items() if v != {}}, sort_keys=False)


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
    yield from _problems_of_stack(recipe)
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


def _problems_of_stack(recipe: Recipe) -> Iterable[str]:
    """Layers that are taken as they are stand in one merge with merged ones there."""
    method = recipe.rules[0].method
    for piece in recipe.stack or ():
        label = f"stack: layers {format_layers(piece.layers)} of {piece.source}"
        if piece.source != MERGED and method not in ("linear", "passthrough"):
            yield f"{label}: taken as they are, beside others by {method}"
        elif piece.scale != 1.0 and (piece.source == MERGED or method != "passthrough"):
            yield f"{label}: scaled, beside others by {method}"


def _laid_out(
    recipe: Recipe, names: list[str]
) -> tuple[dict[str, Made], list[tuple[int, dict[str, Made]]]]:
    """How the ends are made; and, for each layer of the result, which layer it is and how made."""
    by_layer: dict[int | None, list[str]] = {}
    for name in names:
        by_layer.setdefault(place(name).layer, []).append(name)
    last = max((layer for layer in by_layer if layer is not None), default=0)
    ends = {name: _made(name, recipe, last) for name in by_layer.get(None, [])}
    layers = []
    for piece in recipe.stack or (Piece(source=MERGED, layers=tuple(range(last + 1))),):
        for layer in piece.layers:
            if piece.source == MERGED:
                inside = {name: _made(name, recipe, last) for name in by_layer[layer]}
            else:
                method = recipe.rules[0].method
                inside = {name: _taken(name, method, piece) for name in by_layer[layer]}
            layers.append((layer, inside))
    return ends, layers


def _taken(name: str, method: str, piece: Piece) -> Made:
    """A tensor that a stack takes of one model."""
    sources = (piece.source,)
    if method == "linear":
        own = {"weight": {piece.source: 1.0}}
        return Made(part=place(name).part, sources=sources, shared={"normalize": True}, own=own)
    scale = piece.scale if writes_to_residual(name) else 1.0
    return Made(part=place(name).part, sources=sources, shared={"scale": scale}, own={})


def _made(name: str, recipe: Recipe, last: int) -> Made:
    """A tensor that the recipe's rules make."""
    where = place(name)
    covering = [rule for rule in recipe.rules if rule.covers(where.layer, where.part, name)]
    if len(covering) != 1:
        raise UserError(f"tensor {name} is covered by {len(covering)} rules; expected one")
    rule = covering[0]
    given = check_parameters(look_up(rule.method), _given(rule), len(rule.sources))
    if rule.lines is not None and "lambda" in given:
        depth = float(is_after(where.part))
        if where.layer is not None:
            depth = where.layer / max(1, last)
        factor = rule.lines.alpha + rule.lines.beta * depth
        given["lambda"] = number_of(given, "lambda") * factor
    own = {
        key: dict(zip(rule.sources, value, strict=True))
        for key, value in given.items()
        if isinstance(value, tuple)
    }
    shared = {key: value for key, value in given.items() if not isinstance(value, tuple)}
    return Made(part=where.part, sources=rule.sources, shared=shared, own=own)


def _given(rule: Rule) -> dict[str, object]:
    return {
        name: tuple(value[source] for source in rule.sources) if isinstance(value, dict) else value
        for name, value in rule.parameters.items()
    }


def _anchor(recipe: Recipe, tensors: Sequence[Made]) -> str | None:
    """What stands as base_model: the base, where it enters; in slerp one model of every pair."""
    rule = recipe.rules[0]
    if rule.method == "slerp":
        common = [s for s in rule.sources if all(s in each.sources for each in tensors)]
        if not common:
            raise inexpressible("slerp of pairs that have no model in common")
        return common[0]
    if rule.method == "nuslerp":
        return BASE if tensors[0].shared["task_vectors"] else None
    return None if rule.method in WITHOUT_BASE else BASE


def _prepared(method: str, made: Made, anchor: str | None, union: tuple[str, ...]) -> Made:
    """Told from `anchor` on in slerp; with sources of weight 0, where the method has weights."""
    if method == "slerp" and made.sources[0] != anchor:
        t = 1.0 - number_of(made.shared, "t")
        return replace(made, sources=made.sources[::-1], shared={"t": t})
    if method not in _WEIGHTED:
        return made
    absent = {key: 0.0 if key == "weight" else 1.0 for key in made.own}
    own = {
        key: {source: values.get(source, absent[key]) for source in union}
        for key, values in made.own.items()
    }
    return replace(made, sources=union, own=own)


def _models(recipe: Recipe, tensors: Mapping[str, Made]) -> list[dict[str, Any]]:
    """The models of a slice or the whole merge, with their parameters over these tensors."""
    some = next(iter(tensors.values()))
    found = []
    for source in some.sources:
        parameters = {
            key: _setting({name: each.own[key][source] for name, each in tensors.items()})
            for key in some.own
        } | {
            key: _setting({name: each.shared[key] for name, each in tensors.items()})
            for key in some.shared
            if key in _OF_MODELS
        }
        model: dict[str, Any] = {"model": _written(recipe.model(source))}
        found.append(model | ({"parameters": parameters} if parameters else {}))
    return found


def _shared(tensors: Mapping[str, Made]) -> dict[str, Any]:
    """Parameters that do not hang on models."""
    keys = [key for key in next(iter(tensors.values())).shared if key not in (*FLAGS, *_OF_MODELS)]
    return {
        key: _setting({name: each.shared[key] for name, each in tensors.items()})
        for key in keys
        if key != "lambda" or any(each.shared[key] != 1.0 for each in tensors.values())
    }


def _slice(recipe: Recipe, run: Run, anchor: str | None) -> dict[str, Any]:
    models = _models(recipe, run.tensors)
    if anchor == BASE and BASE not in next(iter(run.tensors.values())).sources:
        models.insert(0, {"model": _written(recipe.base)})
    span = {"layer_range": [run.layers[0], run.layers[-1] + 1]}
    shared = _shared(run.outputs())
    sources = [{**model, **span} for model in models]
    return {"sources": sources} | ({"parameters": shared} if shared else {})


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
            raise inexpressible(f"no filter tells {name} from other tensors")
    return found


def _tokenizer(recipe: Recipe, base: Path) -> dict[str, Any]:
    """What is said of vocabularies: nothing where all (as far as they are here) are the base's.

    mergekit merges rows by number unless a tokenizer is asked for, and then drops padding rows.
    """
    asked = recipe.vocabulary
    if asked not in (BASE, UNION):
        return {"tokenizer": {"source": _written(recipe.model(asked))}}
    here = {name: Path(model.path) for name, model in recipe.sources.items()}
    folders = {BASE: base} | {name: path for name, path in here.items() if path.is_dir()}
    found = read_vocabularies(folders)
    if asked == BASE and (found is None or not found.differences()):
        return {}
    return {"tokenizer": {"source": asked}}


def _theirs(method: str) -> str:
    return {ours: theirs for theirs, ours in NAMES.items()}.get(method, method)


def _written(model: Model) -> str:
    return f"{model.path}@{model.revision}" if model.revision else model.path

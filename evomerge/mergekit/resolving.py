"""What a merge of mergekit does to each tensor.

Layers of the output follow the slices, one behind the other. Embeddings follow the first slice,
final norm and head the last; gradients are read at depth 0 for all three. Filters of parameters
that hang on a model see the tensor's name in the input, those of others its name in the output.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.architectures import at_layer, place
from evomerge.errors import UserError, did_you_mean
from evomerge.mergekit.correspondence import (
    DEFAULTS,
    ELECTIONS,
    IGNORED,
    PARAMETERS,
    PER_MODEL,
    REQUIRED,
    RESCALED,
    SUMS,
    WITHOUT_BASE,
)
from evomerge.mergekit.gathering import Resolved
from evomerge.mergekit.settings import setting
from evomerge.methods import METHODS
from evomerge.methods.method import Value
from evomerge.recipe import BASE

log = logging.getLogger(__name__)

Settings = Mapping[str, Any]

_SMALLEST_SUM = 1e-8  # weights that sum to less are not divided by their sum there


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A model of a slice."""

    name: str
    """The recipe's."""
    layers: tuple[int, int] | None
    """(first, behind the last); None: all."""
    parameters: Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Layers of the output and the models they are made of."""

    inputs: tuple[Input, ...]
    parameters: Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """A merge of mergekit in the recipe's names."""

    method: str
    """Its name here."""
    slices: tuple[Slice, ...]
    parameters: Settings
    has_base: bool
    """Whether it gives a base model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer of the output."""

    number: int
    """Of the layer it is made of."""
    tensors: Mapping[str, Resolved]
    """By the names that they have in that layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """All that happens."""

    ends: Mapping[str, Resolved]
    """What is outside the layers, by name."""
    layers: tuple[Layer, ...]
    """Of the output, first to last."""

    def moves(self, layers: int) -> bool:
        """Whether the output's layers are not the model's, each in its place."""
        return [layer.number for layer in self.layers] != list(range(layers))

    def tensors(self) -> dict[str, Resolved]:
        """By name, where no layer moves."""
        inside = {name: what for layer in self.layers for name, what in layer.tensors.items()}
        return {**self.ends, **inside}


def resolve_all(merge: Merge, tensors: Sequence[str]) -> Resolution:
    """What happens to every tensor, by the base's names; UserError for what makes no sense here."""
    _check_names(merge)
    by_layer: dict[int | None, list[str]] = {}
    for name in tensors:
        by_layer.setdefault(place(name).layer, []).append(name)
    count = 1 + max((layer for layer in by_layer if layer is not None), default=-1)
    layers: list[Layer] = []
    for number, piece in enumerate(merge.slices):
        start, end = _span(number, piece, count)
        for layer in range(start, end):
            depth = (layer - start) / (end - 1 - start) if end - start > 1 else 1.0
            resolved = {
                name: _resolve(merge, piece, name, at_layer(name, len(layers)), depth)
                for name in by_layer[layer]
            }
            layers.append(Layer(number=layer, tensors=resolved))
    return Resolution(ends=_ends(merge, by_layer.get(None, [])), layers=tuple(layers))


def _ends(merge: Merge, tensors: Sequence[str]) -> dict[str, Resolved]:
    first, last = merge.slices[0], merge.slices[-1]
    if len(last.inputs) > len(first.inputs):
        log.warning(
            "final norm and head are merged of %d of the %d models of the last slice, as mergekit "
            "does: as many as the first slice has",
            len(first.inputs),
            len(last.inputs),
        )
    after = Slice(inputs=last.inputs[: len(first.inputs)], parameters=last.parameters)
    return {
        name: _resolve(merge, after if is_after(place(name).part) else first, name, name, 0.0)
        for name in tensors
    }


def is_after(part: str) -> bool:
    """Whether a part of the ends stands behind the layers."""
    return part in ("final_norm", "head")


def _span(number: int, piece: Slice, layers: int) -> tuple[int, int]:
    """(first, behind the last) of the layers that a slice takes of all its models."""
    ranges = {given.layers or (0, layers) for given in piece.inputs}
    if len(ranges) != 1:
        raise UserError(
            f"slices.{number}: its models take layers {_told(ranges)}; expected one range: layers "
            "of different numbers cannot be merged with each other"
        )
    start, end = ranges.pop()
    if not 0 <= start < end <= layers:
        raise UserError(
            f"slices.{number}: layer_range {[start, end]}; expected [first, behind the last] of "
            f"the model's layers 0 to {layers - 1}"
        )
    return start, end


def _told(ranges: set[tuple[int, int]]) -> str:
    return " and ".join(f"{first}-{last - 1}" for first, last in sorted(ranges))


def _resolve(merge: Merge, piece: Slice, tensor: str, output: str, depth: float) -> Resolved:
    """Parameters of the tensor: of the model, else of the slice, else of the whole merge."""
    without_base = merge.method in WITHOUT_BASE and not _of_task_vectors(merge)
    inputs = [each for each in piece.inputs if without_base or each.name != BASE]
    if merge.method == "slerp":
        inputs.sort(key=lambda each: each.name != BASE)  # mergekit's t counts from the base
    shared = (piece.parameters, merge.parameters)
    parameters: dict[str, Value] = {}
    for row in METHODS[merge.method].parameters:
        fallback = DEFAULTS.get(merge.method, {}).get(row.name, row.default)
        of_model = row.per_source or row.name in PER_MODEL.get(merge.method, ())
        values = []
        for places in ((each.parameters, *shared) for each in inputs) if of_model else (shared,):
            known = row.name in PARAMETERS[merge.method]
            seen = tensor if of_model else output
            value = setting(places, row.name, seen, depth) if known else None
            if value is None and row.name in REQUIRED:
                raise UserError(f"parameters: {row.name} is not given for {tensor}; expected it")
            values.append(_typed(row.name, fallback if value is None else value, row.default))
        parameters[row.name] = tuple(values) if row.per_source else values[0]
    _translate(merge, shared, output, depth, parameters)
    return Resolved(
        sources=tuple(each.name for each in inputs), parameters=tuple(parameters.items())
    )


def _of_task_vectors(merge: Merge) -> bool:
    return merge.method == "nuslerp" and merge.has_base


def _typed(name: str, value: Any, default: float | bool) -> float:
    if isinstance(default, bool):
        return bool(value)
    if isinstance(value, (bool, str)):
        raise UserError(f"parameters: {name}: {value!r}; expected a number, a gradient, filters")
    return float(value)


def _translate(
    merge: Merge, shared: Sequence[Settings], tensor: str, depth: float, parameters: dict[str, Any]
) -> None:
    """Sets what has other words there."""

    def told(key: str, default: bool) -> bool:
        value = setting(shared, key, tensor, depth)
        return default if value is None else bool(value)

    if merge.method == "nuslerp":
        parameters["task_vectors"] = _of_task_vectors(merge)
        if not told("nuslerp_flatten", True):
            # Its `row_wise` runs over the first dimension: each column by its own angle.
            parameters["by_column"] = told("nuslerp_row_wise", False)
            parameters["by_row"] = not parameters["by_column"]
    if merge.method in SUMS and told("normalize", False):
        total = sum(parameters["weight"])
        if abs(total) > _SMALLEST_SUM:
            parameters["weight"] = tuple(weight / total for weight in parameters["weight"])
    if merge.method in ELECTIONS and parameters["normalize"] and min(parameters["weight"]) < 0:
        raise UserError(
            f"parameters: a negative weight in {merge.method}: normalize divides by the sum of the "
            "weights there and of their magnitudes here; expected normalize: false"
        )
    rescaled = merge.method in RESCALED
    unheard = "rescale" in PARAMETERS[merge.method] and "rescale" not in parameters
    if unheard and told("rescale", rescaled) != rescaled:
        raise UserError(
            f"parameters: rescale: {str(not rescaled).lower()} has no words here for {merge.method}"
        )


def _check_names(merge: Merge) -> None:
    """UserError for parameters nobody knows; a warning for those that change nothing here."""
    effective = PARAMETERS[merge.method]
    known = sorted({name for names in PARAMETERS.values() for name in names})
    rows = {row.name: row for row in METHODS[merge.method].parameters}
    for key, of_model in _given(merge):
        if key == "int8_mask":
            log.warning("int8_mask is left out: arithmetic is float32")
            continue
        if key not in (*known, *IGNORED):
            raise UserError(f"parameters: {key} is not understood; {did_you_mean(key, known)}")
        per_model = key in PER_MODEL.get(merge.method, ()) or (key in rows and rows[key].per_source)
        if key not in effective or (of_model and not per_model):
            where = "on a model " if of_model else ""
            log.warning("%s %shas no effect on %s and is left out", key, where, merge.method)


def _given(merge: Merge) -> Iterator[tuple[str, bool]]:
    """(name, whether it hangs on a model) of every parameter that is given, each once."""
    found = {(key, False): None for key in merge.parameters}
    for piece in merge.slices:
        found |= {(key, False): None for key in piece.parameters}
        found |= {(key, True): None for each in piece.inputs for key in each.parameters}
    yield from found

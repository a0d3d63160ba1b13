"""Which layer and which part of a decoder a tensor belongs to, told from its name alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from evomerge.architectures.rules import (
    END_RULES,
    LAYER_RULES,
    NORMS_AFTER_WRITERS,
    STACKS,
    TOWERS,
    WRITERS,
    Part,
)
from evomerge.errors import UserError

_PartT = TypeVar("_PartT", bound=Part)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a decoder a tensor sits."""

    layer: int | None
    """Counted from 0; None for what is outside the layers."""
    part: Part
    """One of LAYER_PARTS inside a layer, one of END_PARTS outside."""


def place(name: str) -> Place:
    """The layer and part of a tensor, by the name it has in a checkpoint.

    Names with and without the base model's prefix (`transformer.h.0.` and `h.0.`) are understood.
    UserError if no rule knows the name.
    """
    components = name.split(".")
    if any(_matches(TOWERS, component) for component in components):
        return Place(None, "embeddings")
    at = _number_at(components)
    if at is None:
        return Place(None, _part(name, components, END_RULES, "END_RULES"))
    inner = components[at + 1 :]
    return Place(int(components[at]), _part(name, inner, LAYER_RULES, "LAYER_RULES"))


def layers_module(name: str) -> str:
    """Name of the module that holds the layers, of a tensor within one: `model.layers`."""
    components = name.split(".")
    return ".".join(components[: _number_at(components)])


def at_layer(name: str, layer: int) -> str:
    """The name of the same tensor in another layer; the tensor must be within a layer."""
    components = name.split(".")
    at = _number_at(components)
    assert at is not None, name
    return ".".join([*components[:at], str(layer), *components[at + 1 :]])


def writes_to_residual(name: str) -> bool:
    """Whether a tensor of a layer belongs to a projection that writes to the residual stream."""
    components = name.split(".")
    inner = components[(_number_at(components) or 0) + 1 :]
    return any(_matches(WRITERS, component) for component in inner)


def check_scalable(names: Sequence[str]) -> None:
    """UserError where no scale of the writing projections scales what a layer adds.

    names: of all tensors of one layer.
    """
    normed = [n for n in names if any(_matches(NORMS_AFTER_WRITERS, c) for c in n.split("."))]
    if normed:
        raise UserError(
            f"a norm ({normed[0]}) stands between the layer's projections and the residual "
            "stream, so that a scale of the projections has no effect; expected scale 1 for this "
            "architecture"
        )
    for part in ("attention", "mlp"):
        own = [name for name in names if place(name).part == part]
        if own and not any(writes_to_residual(name) for name in own):
            raise UserError(
                f"no rule says which of the {part} tensors writes to the residual stream: expected "
                f"one of {', '.join(own)} to match WRITERS in evomerge/architectures/rules.py; add "
                "its name there, or use scale 1"
            )


def _number_at(components: Sequence[str]) -> int | None:
    """Where among a name's components the number of its layer is; None outside the layers."""
    for position, (stack, number) in enumerate(pairwise(components), start=1):
        if number.isdecimal() and _matches(STACKS, stack):
            return position
    return None


def _part(
    name: str, components: Sequence[str], rules: Sequence[tuple[str, _PartT]], table: str
) -> _PartT:
    for pattern, part in rules:
        if any(_matches(pattern, component) for component in components):
            return part
    raise UserError(
        f"no rule says which part of the model the tensor {name!r} belongs to: expected one of its "
        f"components {', '.join(map(repr, components))} to match a pattern of {table}; add a line "
        "(pattern, part) for it to that table in evomerge/architectures/rules.py"
    )


def _matches(pattern: str, component: str) -> bool:
    return re.fullmatch(pattern, component, re.IGNORECASE) is not None

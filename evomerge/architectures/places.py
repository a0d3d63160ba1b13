"""Which layer and which part of a decoder a tensor belongs to, told from its name alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from evomerge.architectures.rules import END_RULES, LAYER_RULES, STACKS, TOWERS, Part
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
    for position, (stack, number) in enumerate(pairwise(components)):
        if number.isdecimal() and _matches(STACKS, stack):
            inner = components[position + 2 :]
            return Place(int(number), _part(name, inner, LAYER_RULES, "LAYER_RULES"))
    return Place(None, _part(name, components, END_RULES, "END_RULES"))


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

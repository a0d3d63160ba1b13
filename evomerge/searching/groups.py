"""How a space cuts a model: depth times part, and which cells give each group its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evomerge.architectures import END_PARTS
from evomerge.errors import UserError
from evomerge.recipe import format_layers

Ends = Literal["together", "separate", "with_layers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Blocks of `size` consecutive layers share their numbers; the last may be smaller."""

    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Knots:
    """Numbers at `count` layers, evenly spread from the first to the last; linear between."""

    count: int


Depth = Literal["global", "layers"] | Blocks | Knots


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A place that owns numbers. None: any layer, or every part, as in a recipe's rule."""

    layers: tuple[int, ...] | None = None
    parts: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """Short name, as parameters carry it: `layers 0-3 attention+mlp`, or `all`."""
        words = [] if self.layers is None else [f"layers {format_layers(self.layers)}"]
        words += [] if self.parts is None else ["+".join(self.parts)]
        return " ".join(words) or "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A set of tensors under one rule, and the cells that its numbers come from."""

    place: Cell
    cells: tuple[tuple[Cell, float], ...]
    """(cell, share): one, or the two that the group lies between; the shares sum to 1."""
    choice: str
    """Where categories (methods, operands) are chosen together."""


def _group(place: Cell) -> Group:
    """A group that owns its numbers."""
    return Group(place=place, cells=((place, 1.0),), choice=place.label)


def make_groups(
    depth: Depth, parts: Sequence[Sequence[str]], ends: Ends, layers: int, present: set[str]
) -> tuple[Group, ...]:
    """Cuts a model of `layers` layers whose tensors fall in the parts `present`.

    `parts` lists which of attention, mlp and norm go together. Groups without tensors are left
    out. UserError for more knots than layers, or ends joined to layers that are not one group.
    """
    split = [tuple(part for part in set_ if part in present) for set_ in parts]
    split = [set_ for set_ in split if set_]
    if ends == "with_layers":
        if depth != "global" or len(split) > 1:
            raise UserError("space.ends: with_layers needs depth: global and parts: together")
        return (_group(Cell()),)
    groups: list[Group] = []
    for set_ in split:
        groups += _along_depth(depth, set_ if len(split) > 1 else None, layers)
    outside = tuple(part for part in END_PARTS if part in present)
    for end_parts in [outside] if ends == "together" else [(part,) for part in outside]:
        groups.append(_group(Cell(parts=end_parts)))
    return tuple(groups)


def _along_depth(depth: Depth, parts: tuple[str, ...] | None, layers: int) -> list[Group]:
    if isinstance(depth, Knots):
        return _knots(depth.count, parts, layers)
    size = {"global": layers, "layers": 1}[depth] if isinstance(depth, str) else depth.size
    blocks = [range(first, min(first + size, layers)) for first in range(0, layers, size)]
    return [_group(Cell(layers=tuple(block), parts=parts)) for block in blocks]


def _knots(count: int, parts: tuple[str, ...] | None, layers: int) -> list[Group]:
    if not 2 <= count <= layers:
        raise UserError(
            f"space.depth: knots: got {count}; expected 2 to {layers}, the number of layers"
        )
    anchors = [round(knot * (layers - 1) / (count - 1)) for knot in range(count)]
    knots = [Cell(layers=(anchor,), parts=parts) for anchor in anchors]
    whole = Cell(layers=tuple(range(layers)), parts=parts)
    groups = []
    for layer in range(layers):
        right = next(number for number, anchor in enumerate(anchors) if anchor >= layer)
        cells: tuple[tuple[Cell, float], ...] = ((knots[right], 1.0),)
        if anchors[right] != layer:
            share = (layer - anchors[right - 1]) / (anchors[right] - anchors[right - 1])
            cells = ((knots[right - 1], 1.0 - share), (knots[right], share))
        place = Cell(layers=(layer,), parts=parts)
        groups.append(Group(place=place, cells=cells, choice=whole.label))
    return groups

"""A recipe laid out over the depth of the model: which layer takes what from whom."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from evomerge.recipe import Recipe, Rule

ENDS = "ends"
"""The place of what lies outside the layers: embeddings, final norm, head."""
EVERY = "all"
"""The place of rules for any layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """The cells of a recipe."""

    places: tuple[str, ...]
    """The axis: `0`, `1`, ..., `ends`, or `all`; of a stack, the position in it."""
    cells: pd.DataFrame
    """place, part (`every part` where a rule names none), source, method, parameter, value."""

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters that have a value for every source, weight first."""
        names = list(dict.fromkeys(self.cells["parameter"]))
        return sorted(names, key=lambda name: name != "weight")


def places_of(recipes: Sequence[Recipe]) -> tuple[str, ...]:
    """The places that the rules of some recipes tell apart; none where all are for every layer."""
    cells = [cell for recipe in recipes for rule in recipe.rules for cell in _cells(rule)]
    return tuple(sorted({cell[0] for cell in cells} - {EVERY}, key=_order))


def depth_of(recipe: Recipe, places: Sequence[str] = ()) -> Depth:
    """The coefficients of a recipe by place, part and source; numbers that a rule has for all its
    sources stand at each of them. places: where rules for every layer stand; none: at `all`."""
    rows = [
        (place, *row[1:])
        for rule in recipe.rules
        for row in _cells(rule)
        for place in (places if places and row[0] == EVERY else row[:1])
    ]
    columns = ["place", "part", "source", "method", "parameter", "value"]
    cells = pd.DataFrame(rows, columns=columns)
    if recipe.stack is not None:
        position = 0
        taken = []
        for piece in recipe.stack:
            for layer in piece.layers:
                taken.append(
                    (str(position), f"layer {layer}", piece.source, "stack", "scale", piece.scale)
                )
                position += 1
        cells = pd.concat([cells, pd.DataFrame(taken, columns=columns)], ignore_index=True)
    return Depth(places=tuple(sorted(set(cells["place"]), key=_order)), cells=cells)


def _cells(rule: Rule) -> Iterator[tuple[str, str, str, str, str, float]]:
    part = "every part" if rule.parts is None else " + ".join(rule.parts)
    if rule.tensors is not None:
        part += f", {len(rule.tensors)} tensors"
    places = [EVERY] if rule.layers is None else [str(layer) for layer in rule.layers]
    if rule.layers is None and rule.parts is not None and set(rule.parts) <= _OUTSIDE:
        places = [ENDS]
    for place in places:
        for source in rule.sources:
            parameters = rule.parameters or {"taken": 1.0}
            for name, value in parameters.items():
                own = value[source] if isinstance(value, dict) else value
                yield place, part, source, rule.method, name, float(own)


_OUTSIDE = {"embeddings", "final_norm", "head"}


def _order(place: str) -> tuple[int, int]:
    if place.isdecimal():
        return 0, int(place)
    return (1, 0) if place == ENDS else (2, 0)

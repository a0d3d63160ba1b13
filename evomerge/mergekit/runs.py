"""Layers of a result as slices of mergekit: runs of layers that are made of equal models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evomerge.architectures import at_layer, place
from evomerge.errors import UserError
from evomerge.mergekit.resolving import is_after


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """How one tensor is made."""

    part: str
    sources: tuple[str, ...]
    shared: Mapping[str, float | bool]
    """Parameters of the rule."""
    own: Mapping[str, Mapping[str, float]]
    """Parameter -> source -> number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Successive layers, each one behind the one before, of equal models."""

    layers: tuple[int, ...]
    sources: tuple[str, ...]
    tensors: Mapping[str, Made]
    """By name in the input."""
    first: int
    """Number of its first layer in the output."""

    def outputs(self) -> dict[str, Made]:
        """By name in the output."""
        moved = self.first - self.layers[0]
        return {
            name if layer is None else at_layer(name, layer + moved): made
            for name, made in self.tensors.items()
            for layer in [place(name).layer]
        }


def inexpressible(what: str) -> UserError:
    """The error for what has no words."""
    return UserError(f"mergekit cannot express this recipe: {what}")


def runs_of(layers: Sequence[tuple[int, Mapping[str, Made]]]) -> list[Run]:
    """Runs of the result's layers, given as (number in the input, how each tensor is made)."""
    runs: list[Run] = []
    for position, (number, inside) in enumerate(layers):
        sources = {made.sources for made in inside.values()}
        if len(sources) != 1:
            raise inexpressible(f"layer {number}: other sources in other parts")
        run = Run(layers=(number,), sources=sources.pop(), tensors=inside, first=position)
        before = runs[-1] if runs else None
        if before and before.sources == run.sources and number == before.layers[-1] + 1:
            runs[-1] = replace(
                before, layers=(*before.layers, number), tensors={**before.tensors, **inside}
            )
        else:
            runs.append(run)
    return runs


def with_ends(runs: Sequence[Run], ends: Mapping[str, Made]) -> list[Run]:
    """The runs, the first with the embeddings, the last with final norm and head.

    UserError where these are made of other models than mergekit makes them of.
    """
    found = list(runs)
    first, last = runs[0].sources, runs[-1].sources
    for name, made in ends.items():
        after = is_after(made.part)
        if made.sources != (last[: len(first)] if after else first):
            where = "last" if after else "first"
            raise inexpressible(f"{made.part}: other sources than in the {where} layer")
        at = -1 if after else 0
        found[at] = replace(found[at], tensors={**found[at].tensors, name: made})
    return found

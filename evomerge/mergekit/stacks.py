"""Slices whose layers move, repeat or are left out, as a recipe's stack."""

from collections.abc import Mapping

from evomerge.architectures import writes_to_residual
from evomerge.errors import UserError
from evomerge.mergekit.gathering import Resolved, gathered
from evomerge.mergekit.resolving import Resolution
from evomerge.recipe import MERGED, Piece, Rule


def stacked(method: str, resolution: Resolution) -> tuple[tuple[Rule, ...], tuple[Piece, ...]]:
    """Rules and stack: whole layers of one model as they are, others from what the rules make.

    UserError where one layer is merged in two ways: rules make each layer once.
    """
    merged: dict[int, Mapping[str, Resolved]] = {}
    pieces: list[Piece] = []
    for layer in resolution.layers:
        direct = _unmerged(method, layer.tensors)
        if direct is None:
            if merged.setdefault(layer.number, layer.tensors) != layer.tensors:
                raise UserError(
                    f"slices: layer {layer.number} is merged in two ways; expected one: a recipe's "
                    "rules make each layer once (a gradient differs from slice to slice)"
                )
            direct = MERGED, 1.0
        source, scale = direct
        if pieces and (pieces[-1].source, pieces[-1].scale) == (source, scale):
            layers = (*pieces.pop().layers, layer.number)
        else:
            layers = (layer.number,)
        pieces.append(Piece(source=source, layers=layers, scale=scale))
    tensors = {name: what for each in merged.values() for name, what in each.items()}
    return gathered(method, {**resolution.ends, **tensors}), tuple(pieces)


def _unmerged(method: str, tensors: Mapping[str, Resolved]) -> tuple[str, float] | None:
    """(model, scale of the projections that write to the residual stream), or None if merged."""
    taken = {name: _taken(method, what) for name, what in tensors.items()}
    sources = {source for source, _ in taken.values()}
    writers = {factor for name, (_, factor) in taken.items() if writes_to_residual(name)}
    others = {factor for name, (_, factor) in taken.items() if not writes_to_residual(name)}
    scales = writers or {1.0}
    if None in sources or len(sources) != 1 or others != {1.0} or len(scales) != 1:
        return None
    return str(sources.pop()), scales.pop()


def _taken(method: str, what: Resolved) -> tuple[str | None, float]:
    """(the one model of which the tensor is a multiple, the factor); (None, 1) if it is merged."""
    values = dict(what.parameters)
    if method == "passthrough":
        return what.sources[0], float(values["scale"])  # type: ignore[arg-type]
    if method == "linear":
        weights = values["weight"]
        assert isinstance(weights, tuple)
        used = [number for number, weight in enumerate(weights) if weight != 0]
        if len(used) == 1:
            factor = 1.0 if values["normalize"] else weights[used[0]]
            return what.sources[used[0]], factor
    return None, 1.0

"""How far sources are from their base, by place: the norms of their task vectors."""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

import torch

from evomerge.architectures import place
from evomerge.merging.models import Models


class Covers(Protocol):
    """A set of layers and parts; None: all of them."""

    @property
    def layers(self) -> tuple[int, ...] | None:
        """Numbers of layers."""
        ...

    @property
    def parts(self) -> tuple[str, ...] | None:
        """Names of parts."""
        ...


C = TypeVar("C", bound=Covers)


def task_vector_norms(
    models: Models, places: Iterable[C], sources: Sequence[str], device: torch.device
) -> dict[C, dict[str, float]]:
    """Place -> source -> ‖δ‖ (Frobenius) of all its tensors there; one pass over the files."""
    squares = {own: dict.fromkeys(sources, 0.0) for own in places}
    for slot in models.layout.slots.values():
        if not slot.dtype.is_floating_point:
            continue
        where = place(slot.name)
        inside = [
            own
            for own in squares
            if (own.layers is None or where.layer in own.layers)
            and (own.parts is None or where.part in own.parts)
        ]
        if not inside:
            continue
        base, *others = (
            tensor.to(device).float() for tensor in models.operands(slot.name, tuple(sources))
        )
        for source, tensor in zip(sources, others, strict=True):
            square = float((tensor - base).square().sum())
            for own in inside:
                squares[own][source] += square
        models.forget()
    return {own: {n: s**0.5 for n, s in row.items()} for own, row in squares.items()}

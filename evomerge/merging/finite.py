"""Sources with NaN or infinite entries, which no merge can use."""

import torch

from evomerge.merging.models import Models

_READ_BEFORE_FORGETTING = 2**28  # bytes of memory-mapped files


def not_finite(models: Models, name: str) -> list[str]:
    """Names of a model's tensors with NaN or infinite entries; one pass over its files.

    Of tensors that merges use; a file may hold others, such as masks.
    """
    found, read = [], 0
    for slot in models.layout.slots.values():
        if not slot.dtype.is_floating_point:
            continue
        tensor = models.read(name, slot.name)
        if not bool(torch.isfinite(tensor).all()):
            found.append(slot.name)
        read += tensor.nbytes
        if read > _READ_BEFORE_FORGETTING:
            models.forget()
            read = 0
    return found


def where_not_finite(tensors: list[str]) -> str:
    """`tensor a and 3 more have NaN or infinite entries`."""
    more = f" and {len(tensors) - 1} more have" if len(tensors) > 1 else " has"
    return f"tensor {tensors[0]}{more} NaN or infinite entries"

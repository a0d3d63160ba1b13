"""What a plan says of one tensor."""

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.merging.layout import Slot
from evomerge.methods.method import Method, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How one tensor is made."""

    slot: Slot
    """Where the result goes."""
    origin: str
    """Name of the slot whose operands are merged; in a stack, that of the layer taken."""
    method: Method | None
    """None: copied from the base (tensors that hold no floating-point numbers)."""
    sources: tuple[str, ...]
    parameters: Mapping[str, Value]
    keys: tuple[int, ...]
    """Of the random masks, one per source; none where the method has no masks."""
    scale: float = 1.0
    """Factor on the merged tensor."""

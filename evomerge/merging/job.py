"""What a plan says of one tensor."""

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.merging.layout import Slot
from evomerge.methods.method import Method, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How one tensor is made."""

    slot: Slot
    method: Method | None
    """None: copied from the base (tensors that hold no floating-point numbers)."""
    sources: tuple[str, ...]
    parameters: Mapping[str, Value]
    keys: tuple[int, ...]
    """Of the random masks, one per source; none where the method has no masks."""

"""Where the operands of merges live, and what that costs in memory."""

from dataclasses import dataclass
from typing import Literal

import torch

from evomerge.devices import free_bytes

_RESERVE = 0.8  # of free memory; the rest is for activations, key/value caches and fragments
_GIB = 2**30

Placement = Literal["device", "host", "files"]
"""Base and sources in the device's memory; in pinned host memory, streamed to the device; or in
their memory-mapped files."""

_WORDS: dict[Placement, str] = {
    "device": "kept in its memory",
    "host": "in pinned host memory, streamed tensor by tensor",
    "files": "read from the files for each candidate",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes that the live model and the operands need, and what is free."""

    model_bytes: int
    operand_bytes: int
    free_bytes: int
    """On the device, or on all of them where the model is spread."""
    host_free_bytes: int
    device: str
    spread: bool = False
    """Over all GPUs; what fits on none of them is kept in the host's memory."""
    wanted: Placement | None = None
    """What the user asked for, instead of what fits."""

    @property
    def offloaded_bytes(self) -> int:
        """Of the live model, kept in the host's memory and copied to the GPUs in every pass; as
        much as `spread_memory` leaves over."""
        if not self.spread or self.device == "cpu":
            return 0
        return max(0, self.model_bytes - int(_RESERVE * self.free_bytes))

    @property
    def placement(self) -> Placement:
        """The fastest place with room for base and sources, unless one was asked for."""
        if self.wanted is not None:
            return self.wanted
        if self.model_bytes + self.operand_bytes <= _RESERVE * self.free_bytes:
            return "device"
        on_gpu = self.device != "cpu"
        if on_gpu and self.offloaded_bytes + self.operand_bytes <= _RESERVE * self.host_free_bytes:
            return "host"
        return "files"

    def sentence(self) -> str:
        """The plan in words, in GiB."""
        why = "" if self.wanted is None else ", as configured"
        device = "all GPUs" if self.spread and self.device != "cpu" else self.device
        offloaded = (
            f" ({in_gib(self.offloaded_bytes)} of it in the host's memory, which slows "
            "every forward pass)"
            if self.offloaded_bytes
            else ""
        )
        return (
            f"{device}: live model {in_gib(self.model_bytes)}{offloaded}, base and sources "
            f"{in_gib(self.operand_bytes)} {_WORDS[self.placement]}{why}; "
            f"{in_gib(self.free_bytes)} free"
        )


def in_gib(count: int) -> str:
    """Bytes in words: two decimals, or two figures where that would be nothing."""
    size = count / _GIB
    return f"{size:.2f} GiB" if size >= 0.1 or size == 0 else f"{size:.2g} GiB"


def spread_memory() -> dict[str | int, int]:
    """Bytes that a spread model may take of each GPU, by number, and of the host.

    The reserve stays free on every GPU, or none would have room for activations and caches.
    """
    memory: dict[str | int, int] = {
        n: int(_RESERVE * free_bytes(torch.device("cuda", n)))
        for n in range(torch.cuda.device_count())
    }
    return {**memory, "cpu": int(_RESERVE * free_bytes(torch.device("cpu")))}

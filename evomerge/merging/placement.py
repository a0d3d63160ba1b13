"""Where the operands of merges live, and what that costs in memory."""

import os
from dataclasses import dataclass

import torch

_RESERVE = 0.8  # share of the free memory that operands and model together may take


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes that the live model and the operands need, and what is free."""

    model_bytes: int
    operand_bytes: int
    free_bytes: int
    device: str

    @property
    def resident(self) -> bool:
        """Whether all operands stay on the device; otherwise they are read from the files."""
        return self.model_bytes + self.operand_bytes <= _RESERVE * self.free_bytes

    def sentence(self) -> str:
        """The plan in words, in GiB."""
        gib = 2**30
        place = "kept in its memory" if self.resident else "read from the files for each candidate"
        return (
            f"{self.device}: live model {self.model_bytes / gib:.2f} GiB, base and sources "
            f"{self.operand_bytes / gib:.2f} GiB {place}; {self.free_bytes / gib:.1f} GiB free"
        )


def choose_device(name: str) -> torch.device:
    """`auto`: the first CUDA device, or the CPU where there is none."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on a device (CPU: without swapping)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

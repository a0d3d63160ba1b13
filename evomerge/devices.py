"""Which device, and how much memory it has left."""

import os
from collections.abc import Sequence

import psutil
import torch

_GIB = 2**30


def choose_device(name: str) -> torch.device:
    """`auto`: the first CUDA device, or the CPU where there is none. `spread` likewise: inputs go
    to the first device of a model that is spread over all."""
    if name in ("auto", "spread"):
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def free_bytes(device: torch.device, *, spread: bool = False) -> int:
    """Memory that can still be taken on a device (CPU: without swapping, files that are only cached
    make room), or on all GPUs."""
    if device.type == "cuda":
        count = torch.cuda.device_count() if spread else 1
        devices = [torch.device("cuda", n) for n in range(count)] if spread else [device]
        return sum(torch.cuda.mem_get_info(each)[0] for each in devices)
    return int(psutil.virtual_memory().available)


def give_back_memory() -> None:
    """What this process keeps of GPUs' memory for its next tensors; its workers need it. Where it
    has used none, nothing happens."""
    torch.cuda.empty_cache()


def used_memory(devices: Sequence[torch.device], processes: Sequence[int] = ()) -> str:
    """`cuda:0 31.2 of 79.1 GiB`, whoever uses it; without GPUs what this process has in memory,
    and others of these numbers, and what is left."""
    words = []
    for device in devices:
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            words.append(f"{device} {(total - free) / _GIB:.1f} of {total / _GIB:.1f} GiB")
    if words:
        return ", ".join(words)
    own = sum(_resident(process) for process in (os.getpid(), *processes))
    return f"{own / _GIB:.1f} GiB used here, {free_bytes(torch.device('cpu')) / _GIB:.1f} available"


def _resident(process: int) -> int:
    """Bytes that a process has in memory; 0 once it has ended."""
    try:
        return int(psutil.Process(process).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0

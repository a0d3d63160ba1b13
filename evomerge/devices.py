"""Which device, and how much memory it has left."""

import psutil
import torch


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

"""What benchmarks share: seconds of a piece of work, and words for what it ran on."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence

import psutil
import torch

CLOCK: list[Callable[[], float]] = [time.perf_counter]
"""What seconds are counted by; the processor's where others use the machine too."""
ENOUGH_SECONDS, MOST_REPEATS = 6.0, 15


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of the work itself: a GPU has nothing else queued before, and is done after."""
    start = now(device)
    work()
    return now(device) - start


def in_turns(
    works: Sequence[Callable[[], object]], device: torch.device, repeats: int
) -> list[float]:
    """Median seconds of each piece of work, one after the other, at least `repeats` times.

    Short work is repeated until a round of all has been measured for ENOUGH_SECONDS in all.
    """
    spent: list[list[float]] = [[] for _ in works]
    while len(spent[0]) < repeats or (
        sum(map(sum, spent)) < ENOUGH_SECONDS and len(spent[0]) < MOST_REPEATS
    ):
        for work, found in zip(works, spent, strict=True):
            found.append(seconds(work, device))
    return [statistics.median(found) for found in spent]


def now(device: torch.device) -> float:
    """The clock, in seconds, when the device has done what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return CLOCK[0]()


def hardware(device: torch.device) -> str:
    """The GPU's name, or the CPU's threads, kind and memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    memory = psutil.virtual_memory().total / 1e9
    return f"{torch.get_num_threads()} threads of a {platform.machine()} CPU, {memory:.0f} GB"

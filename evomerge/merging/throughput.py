"""How fast candidates are made here: measured on random tensors, for the forecast of a check."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from evomerge.methods import look_up
from evomerge.methods.apply import Pass, merge_tensor
from evomerge.methods.parameters import check_parameters
from evomerge.methods.statistics import TensorStatistics

_ELEMENTS = 2**22
_REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Bytes per second of one merge method, and of a plain copy beside it."""

    method: str
    bytes_per_second: float
    """Base, sources and result, each counted once."""
    copy_bytes_per_second: float

    def sentence(self) -> str:
        """In GB/s."""
        return (
            f"{self.method} {self.bytes_per_second / 1e9:.1f} GB/s, "
            f"a plain copy {self.copy_bytes_per_second / 1e9:.1f} GB/s"
        )


def measure(
    method: str, sources: int, dtype: torch.dtype, device: torch.device, run: Pass
) -> Throughput:
    """Merges random operands of 4 million elements in memory; statistics are not counted."""
    row = look_up(method)
    count = min(max(sources, row.minimum_sources), row.maximum_sources or sources)
    generator = torch.Generator(device).manual_seed(0)
    operands = tuple(
        torch.randn(2**11, _ELEMENTS // 2**11, generator=generator, device=device).to(dtype)
        for _ in range(count + 1)
    )
    out = torch.empty_like(operands[0])
    parameters = check_parameters(row, {}, count)
    known = TensorStatistics(operands=operands, keys=tuple(range(1, count + 1)))

    def merge() -> None:
        merge_tensor(row, operands[0], operands[1:], parameters, known, out=out, run=run)

    size = out.nbytes
    return Throughput(
        method=method,
        bytes_per_second=(count + 2) * size / _median_seconds(merge, device),
        copy_bytes_per_second=2 * size / _median_seconds(lambda: out.copy_(operands[0]), device),
    )


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    work()
    seconds = []
    for _ in range(_REPEATS):
        wait_for(device)
        start = time.perf_counter()
        work()
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all that it was given, so that seconds count where spent."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

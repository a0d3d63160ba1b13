"""How fast a candidate is made, beside a plain copy and beside the reference program.

    python tests/benchmarks/merge_speed.py --out results/benchmarks/merge_speed
        [--device cuda] [--reference PYTHON]   # a Python with mergekit 0.1.5

Random bfloat16 tensors: a base of 201 million parameters and three sources. Every operand counts
once (base, sources, result). Times are medians; the copy is measured between the merges.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from evomerge.methods import METHODS
from evomerge.methods.apply import Pass, chunked, merge_tensor
from evomerge.methods.compiled import choose_pass
from evomerge.methods.method import Method
from evomerge.methods.parameters import check_parameters
from evomerge.methods.statistics import TensorStatistics

SHAPE, TENSORS, SOURCES, REPEATS = (2048, 8192), 12, 3, 7
GIVEN = {"density": 0.5, "weight": 0.4}
SAME_AS_REFERENCE = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "sce")


class Family:
    """Tensors of a base and its sources, and what is known of them."""

    def __init__(self, shape: tuple[int, int], tensors: int, sources: int, device: str) -> None:
        self.device = torch.device(device)
        generator = torch.Generator(self.device).manual_seed(0)
        self.operands: list[tuple[torch.Tensor, ...]] = []
        for _ in range(tensors):
            base = torch.randn(shape, generator=generator, device=device).mul_(0.02)
            deltas = (
                torch.randn(shape, generator=generator, device=device) for _ in range(sources)
            )
            all_of_them = (base, *(base + 0.002 * delta for delta in deltas))
            self.operands.append(tuple(each.to(torch.bfloat16) for each in all_of_them))
        self.out = [torch.empty_like(each[0]) for each in self.operands]
        keys = tuple(range(10**9, 10**9 + sources))
        self.known = [TensorStatistics(operands=each, keys=keys) for each in self.operands]

    def parameters(self, method: Method) -> dict[str, object]:
        rows = {row.name for row in method.parameters}
        given = {name: value for name, value in GIVEN.items() if name in rows}
        return check_parameters(method, given, len(self.operands[0]) - 1)  # type: ignore[return-value]

    def candidate(self, method: Method, run: Pass) -> None:
        """Makes every tensor of one candidate."""
        parameters = self.parameters(method)
        for operands, known, out in zip(self.operands, self.known, self.out, strict=True):
            merge_tensor(
                method,
                operands[0],
                operands[1:],
                parameters,  # type: ignore[arg-type]
                known,
                out=out,
                run=run,
            )

    def copy(self) -> None:
        """The base into the result."""
        for operands, out in zip(self.operands, self.out, strict=True):
            out.copy_(operands[0])

    @property
    def elements(self) -> int:
        return sum(out.numel() for out in self.out)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def speed_table(family: Family, run: Pass, repeats: int) -> list[dict[str, object]]:
    """One row per elementwise method that takes three sources."""
    rows = []
    for method in METHODS.values():
        if method.matrix is not None or method.maximum_sources is not None:
            continue
        first = seconds(lambda m=method: family.candidate(m, run), family.device)  # type: ignore[misc]
        merges, copies = [], []
        for _ in range(repeats):
            merges.append(seconds(lambda m=method: family.candidate(m, run), family.device))  # type: ignore[misc]
            copies.append(seconds(family.copy, family.device))
        spent = statistics.median(merges)
        operands = SOURCES + 1 + method.needs_base
        rate = operands * 2 * family.elements / spent
        copied = 2 * 2 * family.elements / statistics.median(copies)
        rows.append(
            {
                "method": method.name,
                "seconds": spent,
                "GB/s": rate / 1e9,
                "copy GB/s": copied / 1e9,
                "share": rate / copied,
                "once": first - spent,
            }
        )
        print(rows[-1], flush=True)
    return rows


REFERENCE = """
import statistics, sys, time, torch
from mergekit.merge_methods import merge_tensors
torch.set_num_threads(int(sys.argv[1]))
g = torch.Generator().manual_seed(0)
base = torch.randn(2048, 8192, generator=g).mul_(0.02)
tensors = [base] + [base + 0.002 * torch.randn(2048, 8192, generator=g) for _ in range(3)]
tensors = [t.to(torch.bfloat16) for t in tensors]
for method in sys.argv[2:]:
    given = {"weight": [0.4] * 3} if method != "sce" else {}
    if method in ("ties", "dare_linear", "dare_ties"):
        given["density"] = 0.5
    inputs = tensors[1:] if method == "linear" else tensors
    options = {} if method == "linear" else {"base_index": 0}
    times = []
    for _ in range(3):
        start = time.perf_counter()
        merge_tensors(inputs, method, parameters=given, **options)
        times.append(time.perf_counter() - start)
    print(method, statistics.median(times), flush=True)
"""


def reference_seconds(python: str) -> dict[str, float]:
    """Seconds of the reference per tensor of the family's shape, by method."""
    command = [python, "-c", REFERENCE, str(torch.get_num_threads()), *SAME_AS_REFERENCE]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    pairs = (line.split() for line in done.stdout.splitlines())
    return {name: float(value) for name, value in pairs}


def scaling(run: Pass, device: str, out: Path, largest: int) -> list[tuple[str, float, float]]:
    """Seconds per candidate against parameters and against sources, as a table and a figure."""
    rows = []
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for name in ("task_arithmetic", "ties"):
        points = []
        for millions in [m for m in (10, 30, 100, 300, 1000) if m <= largest]:
            family = Family((1024, 1000 * millions // 1024), 1, SOURCES, device)
            points.append((millions, _spent(family, name, run)))
            rows.append((f"{name}, {millions} million parameters, 3 sources", *points[-1]))
            del family
        left.loglog(*zip(*points, strict=True), "o-", label=name)
        points = []
        for sources in range(1, 7):
            family = Family((1024, 100_000_000 // 1024), 1, sources, device)
            points.append((sources, _spent(family, name, run)))
            rows.append((f"{name}, 100 million parameters, {sources} sources", *points[-1]))
            del family
        right.plot(*zip(*points, strict=True), "o-", label=name)
    left.set(xlabel="million parameters", ylabel="seconds per candidate")
    right.set(xlabel="sources", ylabel="seconds per candidate", ylim=(0, None))
    left.legend()
    figure.savefig(out / "scaling.png", dpi=110)
    return rows


def _spent(family: Family, name: str, run: Pass) -> float:
    method = METHODS[name]
    family.candidate(method, run)
    times = [seconds(lambda: family.candidate(method, run), family.device) for _ in range(5)]
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reference", help="a Python in which mergekit 0.1.5 is installed")
    parser.add_argument("--largest", type=int, default=1000, help="million parameters, of scaling")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(arguments.device)
    run, reason = choose_pass(device, 2**30)
    family = Family(SHAPE, TENSORS, SOURCES, arguments.device)
    rows = speed_table(family, run, REPEATS)
    lines = [
        "# Speed of making a candidate",
        "",
        f"`python {sys.argv[0]}`, {date.today()}, {_hardware(device)}, torch {torch.__version__}, "
        f"merging {reason}. Base of {family.elements / 1e6:.0f} million parameters, {SOURCES} "
        f"sources, bfloat16, density 0.5; medians of {REPEATS}. `once`: seconds for compiling and "
        "statistics, spent by the first candidate alone.",
        "",
        "| method | seconds | GB/s | copy GB/s | share of a copy | once |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['method']} | {row['seconds']:.3f} | {row['GB/s']:.1f} | "
            f"{row['copy GB/s']:.1f} | {row['share']:.0%} | {row['once']:.1f} |"
        )
    if arguments.reference:
        one = Family(SHAPE, 1, SOURCES, arguments.device)
        theirs = reference_seconds(arguments.reference)
        lines += [
            "",
            "Beside mergekit 0.1.5 `merge_tensors`, one tensor of 17 million elements:",
            "",
        ]
        lines += ["| method | reference, s | op by op, s | one pass, s | times faster |"]
        lines += ["|---|---|---|---|---|"]
        for name, reference in theirs.items():
            ours, plain = _spent(one, name, run), _spent(one, name, chunked)
            lines.append(
                f"| {name} | {reference:.3f} | {plain:.3f} | {ours:.4f} | {reference / ours:.0f} |"
            )
            print(lines[-1], flush=True)
    del family
    lines += ["", "| candidate | seconds |", "|---|---|"]
    for what, _, spent in scaling(run, arguments.device, arguments.out, arguments.largest):
        lines.append(f"| {what} | {spent:.4f} |")
    lines += ["", "![Seconds against parameters and sources](scaling.png)", ""]
    (arguments.out / "README.md").write_text("\n".join(lines))


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of a {platform.machine()} CPU"


if __name__ == "__main__":
    main()

"""How fast a candidate is made, beside a plain copy and beside the reference program.

    python tests/benchmarks/merge_speed.py --out results/benchmarks/merge_speed
        [--device cuda] [--threads 2] [--clock process_time]
        [--reference PYTHON]   # a Python with mergekit 0.1.5

Random bfloat16 tensors: a base of 201 million parameters and three sources. Every operand counts
once (base, sources, result). Times are medians; the copy is measured between the merges. On a GPU
the operands are also streamed from pinned memory, beside a plain copy over the same link.
"""

import argparse
import os
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import psutil
import torch
from beside_reference import comparison
from measuring import CLOCK, hardware, seconds

from evomerge.merging.feed import feed
from evomerge.merging.job import Job
from evomerge.merging.layout import Slot
from evomerge.methods import METHODS
from evomerge.methods.apply import Pass, merge_tensor
from evomerge.methods.compiled import choose_pass
from evomerge.methods.method import Method
from evomerge.methods.parameters import check_parameters
from evomerge.methods.statistics import TensorStatistics, in_memory

SHAPE, TENSORS, SOURCES, REPEATS = (2048, 8192), 12, 3, 9
GIVEN = {"density": 0.5, "weight": 0.4}
SCALED = (1024, 10_000)
"""Shape of the tensors of the scaling part: 10 million elements."""
TARGETS = {"linear": 0.6, "task_arithmetic": 0.6, "ties": 0.4, "dare_ties": 0.2}
"""Shares of a copy's bandwidth that are aimed at, on a CPU."""
RESERVE = 3 * 10**9  # bytes of memory left to others


class Family:
    """Tensors of a base and its sources, and what is known of them.

    Tensors after the first hold its numbers rolled along, so that statistics of the first, which
    are computed once, serve them all.
    """

    def __init__(self, shape: tuple[int, int], tensors: int, sources: int, device: str) -> None:
        self.device = torch.device(device)
        generator = torch.Generator(self.device).manual_seed(0)
        base = torch.randn(shape, generator=generator, device=device).mul_(0.02)
        deltas = (torch.randn(shape, generator=generator, device=device) for _ in range(sources))
        first = [t.to(torch.bfloat16) for t in (base, *(base + 0.002 * d for d in deltas))]
        self.operands = [
            tuple(each.roll(1009 * number) for each in first) for number in range(tensors)
        ]
        self.out = [torch.empty_like(first[0]) for _ in range(tensors)]
        keys = tuple(range(10**9, 10**9 + sources))
        keep = in_memory()
        self.known = [
            TensorStatistics(operands=each, keys=keys, keep=keep) for each in self.operands
        ]

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


def speed_table(family: Family, run: Pass, repeats: int) -> list[str]:
    """One row per elementwise method that takes three sources."""
    lines = [
        "| method | seconds | GB/s | copy GB/s | share of a copy | statistics | compiling |",
        "|---|---|---|---|---|---|---|",
    ]
    reached = []
    for method in METHODS.values():
        if method.matrix is not None or method.maximum_sources is not None:
            continue
        if "activations" in method.needs:  # linear, where there are none
            continue
        parameters, known = family.parameters(method), family.known[0]
        known_in = seconds(lambda: _statistics(method, parameters, known), family.device)  # noqa: B023
        first = seconds(lambda m=method: family.candidate(m, run), family.device)  # type: ignore[misc]
        merges, copies = [], []
        for _ in range(repeats):
            merges.append(seconds(lambda m=method: family.candidate(m, run), family.device))  # type: ignore[misc]
            copies.append(seconds(family.copy, family.device))
        spent = statistics.median(merges)
        operands = SOURCES + 1 + method.needs_base
        rate = operands * 2 * family.elements / spent
        copied = 2 * 2 * family.elements / statistics.median(copies)
        lines.append(
            f"| {method.name} | {spent:.3f} | {rate / 1e9:.1f} | {copied / 1e9:.1f} | "
            f"{rate / copied:.0%} | {known_in:.1f} | {max(0.0, first - spent):.1f} |"
        )
        if method.name in TARGETS:
            target = TARGETS[method.name]
            verb = "reached" if rate >= target * copied else "not reached"
            reached.append(f"{method.name}: {target:.0%} of a copy {verb}")
        print(lines[-1], flush=True)
    return [*lines, "", f"Targets: {'; '.join(reached)}."]


def _statistics(method: Method, parameters: dict[str, object], known: TensorStatistics) -> None:
    method.coefficients(parameters, known)  # type: ignore[arg-type]
    if method.aids is not None:
        method.aids(parameters, known)  # type: ignore[arg-type]


class PinnedModels:
    """What `feed` asks of models: operands by slot name, here in pinned memory."""

    def __init__(self, family: Family) -> None:
        self.held = {
            str(number): tuple(each.cpu().pin_memory() for each in operands)
            for number, operands in enumerate(family.operands)
        }

    def operands(self, slot: str, sources: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
        return self.held[slot]


def streaming(family: Family, run: Pass, repeats: int) -> list[str]:
    """Candidates whose operands come from pinned memory, beside a plain copy of these operands."""
    models = PinnedModels(family)
    names = [str(number) for number in range(len(family.out))]
    devices = dict.fromkeys(names, family.device)
    shape = tuple(family.out[0].shape)
    there = tuple(torch.empty_like(each) for each in family.operands[0])

    def copy() -> None:
        for name in names:
            for source, target in zip(models.held[name], there, strict=True):
                target.copy_(source, non_blocking=True)

    def candidate(method: Method) -> None:
        parameters = family.parameters(method)
        jobs = [
            Job(
                slot=Slot(
                    name=name,
                    parameter=name,
                    shape=shape,
                    strides=(shape[1], 1),
                    offset=0,
                    dtype=torch.bfloat16,
                ),
                origin=name,
                method=method,
                sources=(),
                parameters=parameters,  # type: ignore[arg-type]
                keys=(),
            )
            for name in names
        ]
        for number, (_, operands) in enumerate(feed(jobs, models, devices)):  # type: ignore[arg-type]
            out, known = family.out[number], family.known[number]
            base, sources = operands[0], operands[1:]
            merge_tensor(method, base, sources, parameters, known, out=out, run=run)  # type: ignore[arg-type]

    size = sum(each.nbytes for operands in models.held.values() for each in operands)
    lines = [
        "",
        "From pinned host memory, beside a plain copy of the same operands over the same link:",
        "",
        "| method | seconds | GB/s | copy GB/s | share of the link |",
        "|---|---|---|---|---|",
    ]
    for name in ("task_arithmetic", "ties", "dare_ties"):
        method = METHODS[name]
        candidate(method)
        merges, copies = [], []
        for _ in range(repeats):
            merges.append(seconds(lambda m=method: candidate(m), family.device))  # type: ignore[misc]
            copies.append(seconds(copy, family.device))
        spent, copied = statistics.median(merges), statistics.median(copies)
        lines.append(
            f"| {name} | {spent:.3f} | {size / spent / 1e9:.1f} | {size / copied / 1e9:.1f} | "
            f"{copied / spent:.0%} |"
        )
    return lines


def scaling(run: Pass, device: str, out: Path, largest: int) -> list[str]:
    """Seconds per candidate against parameters and against sources, as tables and a figure."""
    lines = ["", f"Growth, each point the median of {REPEATS} candidates:", ""]
    lines += ["| method | of | points | slope | fixed, ms | R² |", "|---|---|---|---|---|---|"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    sizes = [(m, SOURCES) for m in (10, 30, 100, 300, 1000) if m <= largest]
    spent: dict[tuple[str, tuple[int, int]], float] = {}
    counts = [(100, sources) for sources in range(1, 7)]
    for millions, sources in dict.fromkeys(sizes + counts):
        needed = (sources + 2) * 2 * millions * 10**6
        if device == "cpu" and psutil.virtual_memory().available < needed + RESERVE:
            print(f"left out: {millions} million parameters need {needed / 1e9:.0f} GB")
            continue
        tensors = round(millions * 1e6 / (SCALED[0] * SCALED[1]))
        family = Family(SCALED, max(1, tensors), sources, device)
        for name in ("task_arithmetic", "ties"):
            spent[name, (millions, sources)] = _spent(family, name, run)
        del family
    for name in ("task_arithmetic", "ties"):
        for axes, points, along, unit in (
            (left, sizes, 0, "million parameters"),
            (right, counts, 1, "sources"),
        ):
            kept = [point for point in points if (name, point) in spent]
            x = np.array([point[along] for point in kept], dtype=float)
            y = np.array([spent[name, point] for point in kept])
            axes.plot(x, y, "o-", label=name)
            slope, fixed, fit = _line(x, y)
            listed = ", ".join(f"{a:g}: {b:.4f} s" for a, b in zip(x, y, strict=True))
            lines.append(
                f"| {name} | {unit} | {listed} | {slope * 1e3:.3g} ms | {fixed * 1e3:.2g} | "
                f"{fit:.4f} |"
            )
            print(lines[-1], flush=True)
    left.set(xlabel="million parameters, 3 sources", ylabel="seconds per candidate")
    left.set(xscale="log", yscale="log")
    right.set(xlabel="sources, 100 million parameters", ylabel="seconds per candidate")
    right.set(ylim=(0, None))
    left.legend()
    figure.savefig(out / "scaling.png", dpi=110)
    return [*lines, "", "![Seconds against parameters and sources](scaling.png)"]


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope, value at 0, and R² of the straight line by least squares."""
    slope, fixed = np.polyfit(x, y, 1)
    left = ((y - slope * x - fixed) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    return float(slope), float(fixed), float(1 - left)


def _spent(family: Family, name: str, run: Pass) -> float:
    method = METHODS[name]
    family.candidate(method, run)
    times = [seconds(lambda: family.candidate(method, run), family.device) for _ in range(REPEATS)]
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--reference", help="a Python in which mergekit 0.1.5 is installed")
    parser.add_argument("--largest", type=int, default=1000, help="million parameters, of scaling")
    parser.add_argument("--clock", choices=("perf_counter", "process_time"), default="perf_counter")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    CLOCK[0] = getattr(time, arguments.clock)
    counted = "of one thread's processor time, others used the machine"
    counted = counted if CLOCK[0] is time.process_time else "of the wall clock"
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(arguments.device)
    run, reason = choose_pass(device, 2**30)
    load = os.getloadavg()[0]
    family = Family(SHAPE, TENSORS, SOURCES, arguments.device)
    table = speed_table(family, run, arguments.repeats)
    where = "" if device.type == "cuda" else " It was not run on a GPU."
    lines = [
        "# Speed of making a candidate",
        "",
        f"`python tests/benchmarks/merge_speed.py --threads {arguments.threads} "
        f"--clock {arguments.clock}`, {date.today()}, "
        f"{hardware(device)}, torch {torch.__version__}, merging {reason}; load of the machine "
        f"before the run {load:.1f}.{where}",
        "",
        f"Base of {family.elements / 1e6:.0f} million parameters in {TENSORS} tensors, {SOURCES} "
        f"sources, bfloat16, density 0.5; medians of {arguments.repeats}, {counted}. Seconds "
        "are those of a candidate, without what is done once: compiling (less where its cache is "
        "warm), and the statistics, here of one of the 12 tensors.",
        "",
        *table,
    ]
    if device.type == "cuda":
        lines += streaming(family, run, arguments.repeats)
    del family
    _write(arguments.out, lines)
    if arguments.reference and device.type == "cpu":
        with tempfile.TemporaryDirectory() as scratch:
            lines += ["", "## Beside mergekit 0.1.5", ""]
            lines += comparison(arguments.reference, run, Path(scratch), CLOCK[0])
        _write(arguments.out, lines)
    lines += ["", "## Growth with parameters and sources"]
    lines += scaling(run, arguments.device, arguments.out, arguments.largest)
    _write(arguments.out, lines)


def _write(out: Path, lines: list[str]) -> None:
    """What is there so far: a run takes minutes."""
    (out / "README.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()

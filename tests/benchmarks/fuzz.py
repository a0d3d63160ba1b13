"""Hostile inputs, many, through every door.

    python -m tests.benchmarks.fuzz --run RUN [--inputs 1000] [--seed 0] [--doors NAME ...]
        [--first 0] [--out results/benchmarks/fuzz]
    python -m tests.benchmarks.fuzz --table [--out results/benchmarks/fuzz]

RUN is a sound run folder named `night` (a short search of the quickstart). Input N of a door
depends on seed and N alone. Each piece that ends is a line in OUT/pieces.jsonl; --table adds them
up. What was cut off goes on with --first.
"""

import argparse
import faulthandler
import json
import logging
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from tests.benchmarks.tables import table

HANG_SECONDS = 100


def door_of(name: str, run: Path) -> Any:
    """Made in the process that uses it."""
    from tests.fuzz.doors import DOORS

    return DOORS[name](run)


def piece(name: str, run: Path, seed: int, first: int, inputs: int, here: Path) -> dict[str, Any]:
    """Sends inputs `first` to `first + inputs` through one door."""
    from tests.fuzz.judging import Judge

    door, judge = door_of(name, run), Judge(here, [run])
    at = (here / "at").open("w")
    outcomes: Counter[str] = Counter()
    findings: dict[str, dict[str, Any]] = {}
    slowest, most, start = 0.0, 0, time.perf_counter()
    for number in range(first, first + inputs):
        files = door.make(Random(f"{seed} {name} {number}"))
        at.seek(0)
        at.write(f"{number:12}")
        at.flush()
        found = judge.judge(door, files)
        outcomes[found.outcome] += 1
        slowest, most = max(slowest, found.seconds), max(most, found.memory)
        if found.outcome == "finding":
            known = findings.setdefault(
                found.why, {"count": 0, "first": number, "detail": found.detail}
            )
            known["count"] += 1
    return {
        **{"door": name, "seed": seed, "first": first, "inputs": inputs},
        **{"accepted": outcomes["accepted"], "refused": outcomes["refused"]},
        **{"seconds": round(time.perf_counter() - start, 1), "slowest": round(slowest, 3)},
        **{"memory": most, "findings": findings},
    }


def worked(name: str, run: Path, seed: int, first: int, inputs: int, here: Path) -> None:
    """`piece`, in a process of its own; what came of it lies in a file."""
    faulthandler.enable()
    logging.disable(logging.CRITICAL)
    found = piece(name, run, seed, first, inputs, here)
    (here / "found").write_text(json.dumps(found))


def guarded(name: str, run: Path, seed: int, first: int, inputs: int, here: Path) -> dict[str, Any]:
    """As `piece`. A process that dies is a finding, and the input after it the next."""
    asked = (name, run, seed, first, inputs, here)
    process = multiprocessing.get_context("spawn").Process(target=worked, args=asked)
    process.start()
    at, since = "", time.monotonic()
    while process.is_alive():
        process.join(0.5)
        now = (here / "at").read_text() if (here / "at").exists() else ""
        if now != at:
            at, since = now, time.monotonic()
        elif time.monotonic() - since > HANG_SECONDS:
            process.kill()
            process.join()
    if (here / "found").exists():
        return dict(json.loads((here / "found").read_text()))
    number = int(at or first)
    why = f"the process ended with {process.exitcode}"
    return {
        **{"door": name, "seed": seed, "first": first, "inputs": number + 1 - first},
        **{"accepted": 0, "refused": 0, "seconds": 0, "slowest": 0, "memory": 0},
        **{"findings": {why: {"count": 1, "first": number, "detail": ""}}},
    }


def added(pieces: list[dict[str, Any]]) -> str:
    """Markdown, a row per door."""
    rows = []
    doors = dict.fromkeys(each["door"] for each in pieces)
    for name in doors:
        own = [each for each in pieces if each["door"] == name]
        total = {
            k: sum(each[k] for each in own) for k in ("inputs", "accepted", "refused", "seconds")
        }
        kinds = {why for each in own for why in each["findings"]}
        row = [name, f"{total['inputs']:,}", f"{total['accepted']:,}", f"{total['refused']:,}"]
        row += [str(len(kinds)), f"{total['seconds']:,.0f}"]
        row += [f"{max(each['slowest'] for each in own):.2f}"]
        rows.append([*row, f"{max(each['memory'] for each in own) / 2**20:.0f}"])
    sums = [sum(each[k] for each in pieces) for k in ("inputs", "accepted", "refused")]
    kinds = {(each["door"], why) for each in pieces for why in each["findings"]}
    seconds = sum(each["seconds"] for each in pieces)
    rows.append(["all", *(f"{n:,}" for n in sums), str(len(kinds)), f"{seconds:,.0f}", "", ""])
    head = ["door", "inputs", "accepted", "refused clearly", "findings", "seconds", "slowest (s)"]
    return table([*head, "most memory (MiB)"], rows)


def main() -> None:
    """Runs pieces of 20,000 inputs, or prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path)
    parser.add_argument("--inputs", type=int, default=1000, help="of each door")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--doors", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/fuzz"))
    parser.add_argument("--piece", type=int, default=20_000)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    file = arguments.out / "pieces.jsonl"
    if arguments.table:
        print(added([json.loads(line) for line in file.read_text().splitlines()]))
        return
    faulthandler.enable()
    arguments.out.mkdir(parents=True, exist_ok=True)
    from tests.fuzz.doors import DOORS

    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    for name in arguments.doors or DOORS:
        at, end = arguments.first, arguments.first + arguments.inputs
        while at < end:
            count = min(arguments.piece, end - at)
            with tempfile.TemporaryDirectory(dir=memory, prefix="fuzz-") as here:
                _surroundings(Path(here))
                found = guarded(name, arguments.run, arguments.seed, at, count, Path(here))
            with file.open("a") as pieces:
                pieces.write(json.dumps(found) + "\n")
            kinds = {why: own["count"] for why, own in found["findings"].items()}
            print(name, at, found["inputs"], f"{found['seconds']} s", json.dumps(kinds), flush=True)
            at += found["inputs"]


def _surroundings(here: Path) -> None:
    """Caches and the like of the process that reads lie in a folder of its own."""
    for name in (
        "XDG_CACHE_HOME",
        "HF_HOME",
        "HF_DATASETS_CACHE",
        "MPLCONFIGDIR",
        "TMPDIR",
        "HOME",
    ):
        folder = here / name.lower()
        folder.mkdir()
        os.environ[name] = str(folder)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    logging.disable(logging.CRITICAL)


if __name__ == "__main__":
    main()

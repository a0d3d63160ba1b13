"""Trials per hour against workers, with a scorer that takes as long as on large models.

    python -m tests.benchmarks.workers_scaling --out FOLDER [--workers 1 2 4 8] [--seconds 10]
        [--trials 8] [--repeats 1]

Each search has so many trials for every worker. A worker's rate is that from its first trial's
start to its last one's end, waiting and proposing included, start-up not; efficiency is the sum of
these rates over the workers' number times the rate of one worker alone. Prints Markdown.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from datetime import datetime
from pathlib import Path

from optuna.trial import FrozenTrial

from evomerge.searching.record import RESULT, WORKER
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.study import find_study
from tests.benchmarks.slowed import write_config


def searched(out: Path, workers: int, trials: int, seconds: float) -> list[FrozenTrial]:
    """The trials of a search with so many workers."""
    shutil.rmtree(out, ignore_errors=True)
    config = write_config(out, seconds, {"trials": trials})
    command = [sys.executable, "-m", "evomerge", "search", str(config), "--workers", str(workers)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    study = find_study(RunFolder(out / "run").storage(None))
    assert study is not None
    return [t for t in study.get_trials() if t.state.is_finished()]


def rate(trials: list[FrozenTrial]) -> tuple[float, float]:
    """(trials per hour of all workers, median seconds of a trial for proposing and recording)."""
    by_worker: dict[str, list[tuple[datetime, datetime]]] = defaultdict(list)
    for trial in trials:
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        worker = trial.user_attrs[WORKER]["worker"]
        by_worker[worker].append((trial.datetime_start, trial.datetime_complete))
    per_second = 0.0
    for spans in by_worker.values():
        first, last = min(start for start, _ in spans), max(end for _, end in spans)
        per_second += len(spans) / (last - first).total_seconds()
    scored = [t.user_attrs[RESULT]["seconds"] for t in trials if "seconds" in t.user_attrs[RESULT]]
    other = [s["propose"] + s.get("record", 0.0) for s in scored if "propose" in s]
    return 3600 * per_second, statistics.median(other)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--trials", type=int, default=8, help="of each worker")
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print("| workers | trials per hour | efficiency | propose and record, seconds per trial |")
    print("| ---: | ---: | ---: | ---: |")
    alone = 0.0
    for workers in given.workers:
        found = [
            rate(searched(given.out, workers, workers * given.trials, given.seconds))
            for _ in range(given.repeats)
        ]
        rates, others = zip(*found, strict=True)
        middle = statistics.median(rates)
        alone = alone or middle / workers
        print(
            f"| {workers} | {middle:.0f} | {100 * middle / (workers * alone):.1f} % | "
            f"{statistics.median(others):.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

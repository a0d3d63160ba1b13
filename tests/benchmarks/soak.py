"""Two hours of a search with several workers: memory, open files, and the size of its storage.

    python -m tests.benchmarks.soak --out FOLDER [--hours 2] [--workers 2] [--seconds 1.2]
        [--model MODEL]
    python -m tests.benchmarks.soak --out FOLDER --report

MODEL: a folder with a checkpoint in one file, to search on instead of the quickstart's small
models; its two sources are copies with noise, made in FOLDER. FOLDER gets the run and
`samples.csv`: every ten seconds, of every process of the search, resident and private bytes, open
files and threads, and the trials and bytes that the study has by then. The report, Markdown,
compares what a process grows by per trial with what the study itself needs per trial in a process
that does nothing but read it.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from safetensors.torch import load_file, save_file

from evomerge.searching.run_folder import RunFolder
from evomerge.searching.study import find_study
from tests.benchmarks.slowed import write_config

COLUMNS = ("seconds", "process", "resident", "private", "files", "threads", "trials", "journal")
_PAUSE = 10.0  # seconds between samples
_WARM = 180  # seconds at either end that do not count


def sample(root: psutil.Process, run: Path, begun: float) -> list[dict[str, object]]:
    """One row for each process of the search."""
    journal = run / "study.journal"
    size = journal.stat().st_size if journal.exists() else 0
    scored = sum(1 for entry in os.scandir(run / "search")) if (run / "search").exists() else 0
    rows = []
    for process in [root, *root.children()]:
        try:
            memory = process.memory_full_info()
            label = "leader" if process.pid == root.pid else _label(process)
            rows.append(
                {
                    "seconds": round(time.monotonic() - begun),
                    "process": label,
                    "resident": memory.rss,
                    "private": memory.uss,
                    "files": process.num_fds(),
                    "threads": process.num_threads(),
                    "trials": scored,
                    "journal": size,
                }
            )
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return rows


def _label(process: psutil.Process) -> str:
    words = process.cmdline()
    return words[words.index("--label") + 1] if "--label" in words else "other"


def with_copies(model: Path, out: Path) -> dict[str, str]:
    """The model as base, and two copies of it with noise of 2 % of each tensor's own spread."""
    models = {"base": str(model.resolve())}
    for number in range(2):
        models[f"copy{number}"] = str((out / f"copy{number}").resolve())
        shutil.copytree(model, out / f"copy{number}", dirs_exist_ok=True)
        generator = torch.Generator().manual_seed(number)
        weights = load_file(model / "model.safetensors")
        for name, tensor in weights.items():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            weights[name] = tensor + 0.02 * tensor.float().std().to(tensor.dtype) * noise
        save_file(weights, out / f"copy{number}" / "model.safetensors", metadata={"format": "pt"})
    return models


def soak(out: Path, hours: float, workers: int, seconds: float, model: Path | None) -> None:
    """Runs the search and writes the samples."""
    out.mkdir(parents=True, exist_ok=True)
    models = None if model is None else with_copies(model, out)
    config = write_config(out, seconds, {"hours": hours}, models=models)
    command = [sys.executable, "-m", "evomerge", "search", str(config), "--workers", str(workers)]
    begun = time.monotonic()
    with (out / "printed.txt").open("wb") as printed, (out / "samples.csv").open("w") as file:
        search = subprocess.Popen(command, stdout=printed, stderr=printed)
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        root = psutil.Process(search.pid)
        while search.poll() is None:
            writer.writerows(sample(root, out / "run", begun))
            file.flush()
            time.sleep(_PAUSE)
    print(f"ended with {search.returncode} after {time.monotonic() - begun:.0f} s")


def report(out: Path) -> None:
    """Prints what the samples say, from when all processes had begun trials."""
    frame = pd.read_csv(out / "samples.csv")
    frame = frame[(frame.seconds >= _WARM) & frame.process.str.match(r"leader|worker")]
    last = frame.seconds.max()
    print(f"{last / 3600:.2f} hours, {frame.trials.max()} trials.\n")
    print("| process | private memory, MiB | per 1,000 trials, MiB | open files | threads |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, own in frame[frame.seconds < last - _WARM].groupby("process"):
        slope = np.polyfit(own.trials, own.private / 2**20, 1)[0]
        ends = f"{own.private.iloc[0] / 2**20:.0f} to {own.private.iloc[-1] / 2**20:.0f}"
        files, threads = (f"{own[c].min()} to {own[c].max()}" for c in ("files", "threads"))
        print(f"| {name} | {ends} | {1000 * slope:.1f} | {files} | {threads} |")
    grown = frame.groupby("trials").journal.max().reset_index()
    halves = [grown[: len(grown) // 2], grown[len(grown) // 2 :]]
    sizes = [np.polyfit(half.trials, half.journal, 1)[0] / 1024 for half in halves]
    print(
        f"\nJournal: {sizes[0]:.2f} KiB per trial in the first half, {sizes[1]:.2f} in the second."
    )
    before = psutil.Process().memory_full_info().uss
    study = find_study(RunFolder(out / "run").storage(None))
    assert study is not None
    count = len(study.get_trials(deepcopy=False))
    alone = (psutil.Process().memory_full_info().uss - before) / 2**20
    print(f"The study alone, read by a process: {1000 * alone / count:.1f} MiB per 1,000 trials.")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.2)
    parser.add_argument("--model", type=Path, help="a checkpoint of one file")
    parser.add_argument("--report", action="store_true", help="of a search that has ended")
    arguments = parser.parse_args()
    if arguments.report:
        report(arguments.out)
        return
    soak(arguments.out, arguments.hours, arguments.workers, arguments.seconds, arguments.model)


if __name__ == "__main__":
    main()

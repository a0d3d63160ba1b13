"""kill -9 at random moments, over one search, and over its export.

    python -m tests.benchmarks.kills --out FOLDER [--kills 100] [--trials 300] [--exports 20]
        [--seed 0]

Each start of the search is of one process that scores, or of a parent with two workers, at random.
At a random moment the search, the parent or a worker is killed, and what the study then has of
finished trials is noted. In the end every noted trial must still be there as it was, no weights may
have been scored twice, and no trial may be left running. Prints Markdown.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

from evomerge import Recipe
from evomerge.report import read_run
from evomerge.searching.record import TrialRecord
from tests.benchmarks.slowed import write_config

_ENDED = ("complete", "pruned", "step", "failed")


def start(out: Path, config: Path, workers: int) -> "subprocess.Popen[bytes]":
    """The same command every time, but for the workers."""
    command = [sys.executable, "-m", "evomerge", "search", str(config), "--workers", str(workers)]
    with (out / "printed.txt").open("ab") as printed:
        return subprocess.Popen(command, stdout=printed, stderr=printed)


def finished(run: Path) -> dict[int, TrialRecord]:
    """Number -> record of the trials that have ended."""
    if not (run / "study.journal").exists():
        return {}
    return {r.number: r for r in read_run(run).records if r.state in _ENDED}


def search_under_fire(out: Path, kills: int, trials: int, seed: int) -> Counter[str]:
    """Runs the search to its end; what was killed, and what was wrong afterwards."""
    chance = random.Random(seed)
    config = write_config(out, 2.5, {"trials": trials})
    run, killed = out / "run", Counter[str]()
    noted: dict[int, TrialRecord] = {}
    workers = chance.choice((1, 2))
    process = start(out, config, workers)
    while killed.total() < kills and process.poll() is None:
        time.sleep(chance.uniform(2.0, 14.0))
        children = psutil.Process(process.pid).children() if process.poll() is None else []
        if workers == 2 and children and chance.random() < 0.6:
            victim = chance.choice(children)
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue
            killed["worker"] += 1
        elif process.poll() is None:
            process.kill()
            process.wait()
            killed["parent" if workers == 2 else "search"] += 1
            noted |= finished(run)
            workers = chance.choice((1, 2))
            process = start(out, config, workers)
    killed["ended before the last kill"] = kills - killed.total()
    assert process.wait() == 0, (out / "printed.txt").read_text()[-2000:]
    report = read_run(run)
    done = [r for r in report.records if r.state in _ENDED]
    lost = [n for n, r in noted.items() if report.by_number[n].value != r.value]
    scored = Counter(r.fingerprint for r in done if r.value is not None and r.same_as is None)
    killed["finished trials"] = len(done)
    killed["of these noted after a kill"] = len(noted)
    killed["lost or changed"] = len(lost)
    killed["weights scored twice"] = sum(count - 1 for count in scored.values())
    killed["failed"] = sum(r.state == "failed" for r in done)
    killed["interrupted, and taken up again"] = report.counts().get("interrupted", 0)
    killed["left running"] = report.counts().get("running", 0)
    return killed


def exports_under_fire(out: Path, times: int, seed: int) -> Counter[str]:
    """Kills the export; what it leaves must never look whole unless it is."""
    chance = random.Random(seed)
    found = Counter[str]()
    for number in range(times):
        folder = out / "exports" / str(number)
        folder.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "evomerge", "export", str(out / "run"), str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(2.0, 9.0))
        process.kill()
        process.wait()
        whole = (folder / "recipe.yaml").exists()
        found["exports killed or done"] += 1
        found["whole" if whole else "nothing that looks whole"] += 1
        if whole:
            Recipe.read(folder / "recipe.yaml")
        subprocess.run([*command, "--force"], check=True, stdout=subprocess.DEVNULL)
        assert (folder / "model.safetensors").stat().st_size > 0
    return found


def main() -> None:
    """Reads the command line and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--exports", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    begun = time.monotonic()
    found = search_under_fire(given.out, given.kills, given.trials, given.seed)
    found.update(exports_under_fire(given.out, given.exports, given.seed))
    print("| | |\n|---|---|")
    for name, count in found.items():
        print(f"| {name} | {count} |")
    print(f"\n{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()

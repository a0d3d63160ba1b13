"""How long the dashboard's pages take for a large run, and how much memory it has.

    python -m tests.benchmarks.dashboard_load --out FOLDER [--trials 10000] [--repeats 5] [--peer]

Writes a run of 40 layers times 5 sources (200 parameters) and 100 tasks with 5,000 documents each
into FOLDER, where it is not there yet, serves it, and opens pages in headless chromium. Times are
from the request until all figures are drawn; "first" is asked for as soon as the server listens.
--peer: also reads the same journal with Optuna, as optuna-dashboard does. Prints Markdown.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import psutil
from playwright.sync_api import Page, sync_playwright

from tests.benchmarks.large_run import write_large_run

_OPTUNA = """
import sys, time, resource
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
start = time.perf_counter()
storage = JournalStorage(JournalFileBackend(sys.argv[1]))
storage.get_all_trials(0, deepcopy=False)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def seconds_of(page: Page, address: str) -> tuple[float, float]:
    """(until the page is there, until all figures but that of importance are drawn)."""
    start = time.perf_counter()
    page.goto(address, wait_until="domcontentloaded")
    there = time.perf_counter() - start
    page.wait_for_function(
        "() => [...document.querySelectorAll('figure.chart')].every("
        "f => f.dataset.drawn || f.dataset.src.includes('importance'))",
        timeout=120_000,
    )
    return there, time.perf_counter() - start


def main() -> None:
    """Writes, serves, opens, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_PLAIN)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer", action="store_true")
    arguments = parser.parse_args()
    run = arguments.out / "large"
    if not run.exists():
        write_large_run(
            run,
            trials=arguments.trials,
            layers=40,
            sources=5,
            tasks=100,
            documents=5000,
            scored=6,
        )
    last = arguments.trials - 1
    places = {
        "runs": "/",
        "run": "/run/large",
        "run, sorted by a task": "/run/large?sort=task%20task%2050",
        "trial": f"/run/large/trial/{last}",
        "trial against another, its documents": f"/run/large/trial/{last}?against={last - 1}",
        "compare two": f"/run/large/compare?trials={last},{last - 1}",
        "compare six": "/run/large/compare?trials=" + ",".join(str(last - n) for n in range(6)),
    }
    words = ["dashboard", str(arguments.out), "--port", "0"]
    server = subprocess.Popen(
        [sys.executable, "-m", "evomerge", *words], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        site = server.stdout.readline().removeprefix("dashboard: ").strip().rstrip("/")
        began = time.perf_counter()
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = chromium.new_page()
            first, _ = seconds_of(page, site)
            while "being read" in page.content():
                time.sleep(0.2)
                page.goto(site)
            read = time.perf_counter() - began
            print("| view | page, s | with its figures, s |\n|---|---:|---:|")
            print(f"| first, right after the start (progress of reading) | {first:.2f} | |")
            for name, place in places.items():
                own = [seconds_of(page, site + place) for _ in range(arguments.repeats)]
                there, drawn = (median(column) for column in zip(*own, strict=True))
                print(f"| {name} | {there:.2f} | {drawn:.2f} |")
            chromium.close()
        memory = psutil.Process(server.pid).memory_info().rss / 2**30
        size = (run / "study.journal").stat().st_size / 2**30
        print(f"\nJournal of {size:.2f} GiB, read in {read:.1f} s; resident {memory:.2f} GiB.")
    finally:
        server.terminate()
    if arguments.peer:
        words = [sys.executable, "-c", _OPTUNA, str(run / "study.journal")]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        seconds, gib = map(float, done.stdout.split())
        print(f"Optuna reads it in {seconds:.1f} s; resident {gib:.2f} GiB.")


_PLAIN = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()

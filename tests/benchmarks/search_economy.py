"""What early stopping and the smooth objective save, and what they cost in points on the holdout.

    python -m tests.benchmarks.search_economy --out FOLDER [--config configs/quickstart.yaml]
        [--settings metric metric+stop both both+halving=2,blocks=16] [--seeds 10]
        [--trials 60 220] [--jobs 2] [--audit 20]

A setting is an objective, alone or followed by + and how trials are stopped early: `stop` (the
defaults), `race` (no halving), or keys of `early_stopping`. Every setting is searched once per seed
and number of trials; a seed varies the proposals, the masks and the split of the documents. Each
search is a process of its own, on one thread; its run folder and its results lie in FOLDER, and
what is there is not run again. --audit N: up to N pruned trials of each run are scored in full.
Prints Markdown.
"""

import argparse
import dataclasses
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import yaml

from evomerge.assemble import evaluator, prepare
from evomerge.checkpoints.hashes import HashCache
from evomerge.config import BudgetConfig, LoadedConfig, load_config
from evomerge.config import EarlyStoppingConfig as Stopping
from evomerge.report import read_run
from evomerge.verbs import search
from tests.benchmarks.tables import interval, spread, table

SETTINGS = ("metric", "metric+race", "metric+stop", "smooth", "smooth+stop", "both", "both+stop")
Row = dict[str, Any]


def stopping(text: str) -> Stopping | None:
    """What stands behind the + of a setting."""
    if text in ("", "stop"):
        return Stopping() if text else None
    if text == "race":
        return Stopping(halving=False)
    return Stopping(**{k: yaml.safe_load(v) for k, v in (p.split("=") for p in text.split(","))})


def configured(config: Path, out: Path, setting: str, seed: int) -> LoadedConfig:
    """The configuration of one run; seeds other than 0 are added to the file's."""
    loaded = load_config(config)
    objective, _, how = setting.partition("+")
    documents = dataclasses.replace(
        loaded.config.documents, seed=loaded.config.documents.seed + seed
    )
    changed: dict[str, Any] = {
        "objective": objective,
        "early_stopping": stopping(how),
        "seed": loaded.config.seed + seed,
        "documents": documents,
        "output": out.resolve(),
        "threads": 1,
    }
    return LoadedConfig(file=loaded.file, config=dataclasses.replace(loaded.config, **changed))


def run_one(loaded: LoadedConfig, trials: int | None) -> None:
    """Searches, or goes on with it, and writes what came out beside the run folder."""
    outcome = search(loaded, budget=None if trials is None else BudgetConfig(trials=trials))
    report = read_run(outcome.folder)
    assert outcome.verdict is not None, "the search was stopped; the same command goes on"
    points = {n: 100 * report.goal.points.value(m) for n, m in report.holdout.items()}
    plain = [p for n, p in points.items() if report.by_number[n].baseline is not None]
    scale = 100 if outcome.verdict.optimism_unit == "points" else 1
    found = {
        "points": points[outcome.verdict.winner],
        "baseline": max(plain),
        "documents": report.documents()["search"],
        "seconds": sum(sum(record.seconds.values()) for record in report.records),
        "trials": sum(record.state in ("complete", "pruned") for record in report.records),
        "pruned": report.pruned(),
        "share": report.share(),
        "optimism": scale * outcome.verdict.optimism,
    }
    result_of(outcome.folder).write_text(json.dumps(found, indent=1))


def result_of(folder: Path) -> Path:
    """Where the results of a run lie; written last."""
    return folder.with_name(f"{folder.name}.json")


def audit_one(loaded: LoadedConfig, count: int) -> None:
    """Scores some pruned trials of a finished run in full, and writes what they were worth."""
    report = read_run(loaded.output())
    pruned = [record for record in report.records if record.estimate is not None]
    chosen = random.Random(0).sample(pruned, min(count, len(pruned)))
    bench = prepare(loaded, HashCache(loaded.output() / "hashes.json"))
    evaluate = evaluator(bench, loaded.output() / "statistics")
    rows = []
    for record in chosen:
        card, _ = evaluate(record.recipe, "search", kinds=bench.goal.trial_kinds)
        value = bench.goal.climbed.value(bench.goal.climbed.metrics(card))
        incumbent = report.by_number[record.pruned_against or 0].value or 0.0
        rows.append(
            {
                "trial": record.number,
                "reason": record.pruned,
                "estimate": record.estimate,
                "value": value,
                "incumbent": incumbent,
            }
        )
    audit_of(loaded.output(), count).write_text(json.dumps(rows, indent=1))


def audit_of(folder: Path, count: int) -> Path:
    """Where the audit of a run lies."""
    return folder.with_name(f"{folder.name}.audit-{count}.json")


def in_process(arguments: argparse.Namespace, run: str) -> None:
    """One run, and its audit, in a process of its own; its log lies in the run folder."""
    setting, trials, seed = run.split(":")
    folder = folder_of(arguments.out, setting, trials, int(seed))
    audited = not arguments.audit or audit_of(folder, arguments.audit).exists()
    if audited and result_of(folder).exists():
        return
    words = [
        sys.executable,
        "-m",
        "tests.benchmarks.search_economy",
        "--out",
        str(arguments.out),
        "--run",
        run,
    ]
    words += ["--config", str(arguments.config), "--audit", str(arguments.audit)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{run}: {done.stderr[-3000:]}")
    print(f"{run}: done", file=sys.stderr, flush=True)


def one(arguments: argparse.Namespace) -> None:
    """What a process of `in_process` does."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    setting, trials, seed = arguments.run.split(":")
    folder = folder_of(arguments.out, setting, trials, int(seed))
    loaded = configured(arguments.config, folder, setting, int(seed))
    if not result_of(folder).exists():
        run_one(loaded, None if trials == "file" else int(trials))
    if arguments.audit and not audit_of(folder, arguments.audit).exists():
        audit_one(loaded, arguments.audit)


def folder_of(out: Path, setting: str, trials: str, seed: int) -> Path:
    """The run folder."""
    return out / f"{setting}:{trials}" / f"seed-{seed}"


def economy(found: dict[str, list[Row]]) -> str:
    """Mean and standard deviation over seeds; the cheapest setting first."""

    def documents(rows: list[Row], kind: str) -> float:
        return statistics.fmean(row["documents"].get(kind, 0) for row in rows)

    lines = []
    for name, rows in found.items():
        share = [100 * row["share"] for row in rows if row["share"] is not None]
        lines.append(
            [
                name,
                f"{documents(rows, 'metric'):.0f}",
                f"{documents(rows, 'smooth'):.0f}",
                spread([row["points"] for row in rows]),
                spread([row["baseline"] for row in rows]),
                interval([row["points"] - row["baseline"] for row in rows]),
                f"{statistics.fmean(row['trials'] for row in rows):.0f}",
                spread([sum(row["pruned"].values()) for row in rows], 0),
                spread(share, 0) if share else "",
                spread([row["seconds"] for row in rows], 0),
                spread([row["optimism"] for row in rows], 2),
            ]
        )
    head = ["setting:trials", "documents, metric", "documents, smooth", "holdout points"]
    head += ["best baseline", "gain (95%)", "trials", "pruned", "% of documents per trial"]
    head += ["seconds in trials", "optimism (points; smooth: nats)"]
    return table(head, sorted(lines, key=lambda line: int(line[1]) + int(line[2])))


def differences(found: dict[str, list[Row]]) -> str:
    """Holdout points of every setting minus every one before it, paired by seed."""

    def paired(first: str, second: str, value: Callable[[Row], float]) -> list[float]:
        return [value(a) - value(b) for a, b in zip(found[first], found[second], strict=True)]

    names = list(found)
    rows = [
        [
            f"{second} minus {first}",
            interval(paired(second, first, lambda row: row["points"])),
            interval(paired(second, first, lambda row: row["seconds"])),
        ]
        for place, first in enumerate(names)
        for second in names[place + 1 :]
    ]
    return table(["", "holdout points (95%)", "seconds in trials (95%)"], rows)


def audits(found: dict[str, list[Row]]) -> str:
    """Of the pruned trials that were scored in full: how many would have beaten the incumbent."""
    rows = []
    for name, checked in found.items():
        for reason in ("race", "halving"):
            own = [row for row in checked if row["reason"] == reason]
            if own:
                false = sum(row["value"] > row["incumbent"] for row in own)
                errors = [row["estimate"] - row["value"] for row in own]
                cells = [str(len(own)), str(false), f"{100 * false / len(own):.1f}"]
                rows.append([name, reason, *cells, spread(errors, 4)])
    head = ["setting:trials", "pruned by", "scored in full", "would have won", "%"]
    return table([*head, "estimate minus value (objective's unit)"], rows)


def main() -> None:
    """Runs what is missing, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_PLAIN)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--settings", nargs="+", default=SETTINGS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", nargs="+", default=["file"], help="default: the file's budget")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--audit", type=int, default=0)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        one(arguments)
        return
    names = [f"{setting}:{trials}" for setting in arguments.settings for trials in arguments.trials]
    # Seed by seed, so that what is there after any time compares all settings.
    runs = [f"{name}:{seed}" for seed in range(arguments.seeds) for name in names]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda run: in_process(arguments, run), runs))
    folders = {
        name: [folder_of(arguments.out, *name.split(":"), seed) for seed in range(arguments.seeds)]
        for name in names
    }
    found = {n: [json.loads(result_of(f).read_text()) for f in own] for n, own in folders.items()}
    print(
        f"{arguments.config.name}, {arguments.seeds} seeds; mean ± standard deviation over seeds\n"
    )
    print(economy(found))
    if len(found) > 1:
        print(f"\n{differences(found)}")
    if arguments.audit:
        checked = {
            name: [row for f in own for row in json.loads(audit_of(f, arguments.audit).read_text())]
            for name, own in folders.items()
        }
        print(f"\n{audits(checked)}")


_PLAIN = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()

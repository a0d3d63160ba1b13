"""Which search finds the better merge for equally many scored documents.

    python -m tests.benchmarks.search_methods --families FOLDER --out FOLDER
        [--kinds damaged compatible ...] [--methods evomerge random cma_es ...] [--seeds 10]
        [--trials 200] [--jobs 1] [--report FOLDER] [--report-only]

FOLDER of families holds one folder per kind, as `configs/quickstart/make_family.py FOLDER/KIND
--kind KIND --seed 1` makes them. A fifth of a family's documents is searched on; the rest judges.

Methods: those of search_opponents.py, and `evomerge`, the search with its defaults, or with others:
`evomerge:metric` names an objective, `evomerge:sampler=tpe:early_stopping=false` any keys of the
configuration. All may score as many documents as --trials candidates scored in full; smooth scores
and metrics count alike. A seed varies the proposals and the split of the documents.

One process runs all seeds of a method on a family, on one thread; each seed's result is a JSON file
in OUT/KIND/METHOD, and what is there is not run again. --report writes tables and figures.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import optuna
import yaml

from evomerge.assemble import Bench, evaluator, prepare
from evomerge.checkpoints.hashes import HashCache
from evomerge.config import BudgetConfig, LoadedConfig, load_config
from evomerge.recipe import Recipe
from evomerge.report import read_run
from evomerge.searching.finalists import rank
from evomerge.searching.objective import Goal
from evomerge.searching.record import TrialRecord, read_trial
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.space import SearchSpace
from evomerge.searching.study import find_study, finished
from evomerge.verbs import search
from tests.benchmarks.search_methods_report import write_report
from tests.benchmarks.search_opponents import OPPONENTS, Contest, compete

KINDS = ("damaged", "compatible", "conflicting", "useless", "null")
METHODS = ("evomerge", "random", "cma_es", "tpe", "nsga2", "gp", "grid", "uniform")
SHARES = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Of the documents, after which the best candidate so far is scored on the holdout."""
_LAST_TRIAL = 2  # times the search documents: a trial's smooth scores, and a new best's metrics


def configuration(family: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """The content of a family's configuration file, with a setting's keys in their places."""
    models = sorted(path.name for path in (family / "models").iterdir() if path.name != "base")
    tasks = sorted(path.stem for path in (family / "tasks").glob("*.yaml"))
    content: dict[str, Any] = {
        "base": str(family / "models" / "base"),
        "sources": {name: str(family / "models" / name) for name in models},
        "tasks": {name: {"folder": str(family / "tasks")} for name in tasks},
        "space": {"methods": ["task_arithmetic"], "depth": "layers"},
        "documents": {"holdout": 0.8},
        "dtype": "float32",
        "threads": 1,
    }
    for key, value in setting.items():
        *path, last = key.split(".")
        place = content
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    return content


def setting_of(method: str) -> dict[str, Any]:
    """Keys of the configuration, dotted, that stand behind the first colon of a method's name."""
    setting: dict[str, Any] = {}
    for word in method.split(":")[1:]:
        key, equals, value = word.partition("=")
        setting[key if equals else "objective"] = yaml.safe_load(value) if equals else key
    return setting


def configured(arguments: argparse.Namespace, method: str, seed: int) -> LoadedConfig:
    """The configuration of one seed, written beside the results."""
    given = {"seed": seed, "documents.seed": seed, **setting_of(method)}
    if method in OPPONENTS:
        given |= {"objective": "metric", "early_stopping": False}
    family = (arguments.families / arguments.kind).resolve()
    path: Path = arguments.out / arguments.kind / method / f"seed-{seed}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(configuration(family, given), sort_keys=False))
    return load_config(path)


def holdout_points(bench: Bench, evaluate: Any, known: dict[str, float], recipe: Recipe) -> float:
    """The tasks' own metrics on the holdout documents, in points; scored once per weights."""
    name = recipe.fingerprint()
    if name not in known:
        card, _ = evaluate(recipe, "holdout", kinds=frozenset({"metric"}))
        known[name] = 100 * bench.goal.points.value(bench.goal.points.metrics(card))
    return known[name]


def run_opponent(loaded: LoadedConfig, method: str, seed: int, trials: int) -> dict[str, Any]:
    """What an opponent found, and when."""
    bench = prepare(loaded, HashCache(loaded.file.with_suffix(".hashes")))
    evaluate = evaluator(bench)
    points = bench.goal.points

    def value_of(recipe: Recipe) -> float:
        card, _ = evaluate(recipe, "search", kinds=frozenset({"metric"}))
        return points.value(points.metrics(card))

    assert isinstance(bench.space, SearchSpace)
    cost = sum(map(len, bench.documents("search").values()))
    contest = Contest(value_of=value_of, cost=cost, limit=trials * cost)
    start = time.perf_counter()
    compete(OPPONENTS[method], bench.space, contest, seed)
    seconds = time.perf_counter() - start
    known: dict[str, float] = {}
    then = {share: contest.incumbent(share) for share in SHARES}
    at = {
        f"{share:g}": holdout_points(bench, evaluate, known, best.recipe)
        for share, best in then.items()
        if best is not None
    }
    export = contest.incumbents[-1]
    return {
        "points": holdout_points(bench, evaluate, known, export.recipe),
        "search points": 100 * export.value,
        "documents": {"metric": contest.documents},
        "limit": contest.limit,
        "trials": contest.documents // cost,
        "seconds": seconds,
        "at": at,
        "incumbents": [[best.documents, 100 * best.value] for best in contest.incumbents],
        "recipe": export.recipe.to_mapping(),
    }


def run_evomerge(loaded: LoadedConfig, trials: int) -> dict[str, Any]:
    """What a search found that may score so many documents, and what it would have exported had
    it been stopped before its end."""
    bench = prepare(loaded, HashCache(loaded.file.with_suffix(".hashes")))
    cost = sum(map(len, bench.documents("search").values()))
    limit = trials * cost
    # What is scored after the last trial began: its metrics too, and those of the leaders.
    later = _LAST_TRIAL + (bench.goal.leaders if bench.goal.kind == "both" else 0)
    config = load_config(with_output(loaded, loaded.file.with_suffix("")))
    start = time.perf_counter()
    outcome = search(config, budget=BudgetConfig(documents=max(cost, limit - later * cost)))
    seconds = time.perf_counter() - start
    assert outcome.verdict is not None, "the search was stopped; the same command goes on"
    report = read_run(outcome.folder)
    winner = report.by_number[outcome.verdict.winner]
    then = stopped_at(outcome.folder, bench.goal, [share * limit for share in SHARES[:-1]])
    known = {
        report.by_number[number].recipe.fingerprint(): 100 * report.goal.points.value(metrics)
        for number, metrics in report.holdout.items()
    }
    evaluate = evaluator(bench)
    at = {
        f"{share:g}": holdout_points(bench, evaluate, known, best.recipe)
        for share, best in zip(SHARES, [*then, winner], strict=True)
        if best is not None
    }
    value = report.points(winner)
    result = {
        "points": at["1"],
        "search points": None if value is None else 100 * value,
        "documents": report.documents()["search"],
        "limit": limit,
        "trials": sum(record.state in ("complete", "pruned") for record in report.records),
        "seconds": seconds,
        "at": at,
        "winner": winner.name,
        "recipe": winner.recipe.to_mapping(),
    }
    shutil.rmtree(outcome.folder)
    return result


def stopped_at(folder: Path, goal: Goal, documents: Sequence[float]) -> list[TrialRecord | None]:
    """What `evomerge export` would take from a run that was stopped after so many documents.

    Each trial counts with what was known at its own end, without what was scored of it later.
    """
    study = find_study(RunFolder(folder).storage_of_run(None))
    assert study is not None  # it has a verdict
    records = [read_trial(trial) for trial in finished(study)]
    spent = list(accumulate(record.scored for record in records))
    found: list[TrialRecord | None] = []
    for limit in documents:
        ranked = rank(records[: bisect_right(spent, limit)], goal)
        found.append(ranked[0] if ranked else None)
    return found


def with_output(loaded: LoadedConfig, folder: Path) -> Path:
    """The same configuration in a file of its own that names its run folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.yaml")
    content = yaml.safe_load(loaded.file.read_text()) | {"output": str(folder.resolve())}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def result_of(out: Path, kind: str, method: str, seed: int) -> Path:
    """Where the results of a seed lie."""
    return out / kind / method / f"seed-{seed}.json"


def run_seeds(arguments: argparse.Namespace) -> None:
    """All seeds of a method on a family, as far as missing: what a process of its own does."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    method = arguments.method
    for seed in range(arguments.seeds):
        path = result_of(arguments.out, arguments.kind, method, seed)
        if path.exists():
            continue
        loaded = configured(arguments, method, seed)
        if method in OPPONENTS:
            found = run_opponent(loaded, method, seed, arguments.trials)
        else:
            found = run_evomerge(loaded, arguments.trials)
        path.write_text(json.dumps(found, indent=1))


def in_process(arguments: argparse.Namespace, kind: str, method: str) -> None:
    """The seeds of a method on a family in a process of their own; its messages lie beside them."""
    paths = [result_of(arguments.out, kind, method, seed) for seed in range(arguments.seeds)]
    if all(path.exists() for path in paths):
        return
    words = [sys.executable, "-m", "tests.benchmarks.search_methods"]
    for name in ("families", "out", "seeds", "trials"):
        words += [f"--{name}", str(getattr(arguments, name))]
    words += ["--kind", kind, "--method", method]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{kind}, {method}: {done.stderr[-3000:]}")
    print(f"{kind}, {method}: done", file=sys.stderr, flush=True)


def main() -> None:
    """Runs what is missing, and writes the report of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_PLAIN)
    parser.add_argument("--families", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=200, help="fully scored, documents' worth")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--report", type=Path, help="folder that gets the tables and figures")
    parser.add_argument("--report-only", action="store_true", help="of what is there; run nothing")
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.method:
        run_seeds(arguments)
        return
    pairs = [(kind, method) for kind in arguments.kinds for method in arguments.methods]
    if not arguments.report_only:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda pair: in_process(arguments, *pair), pairs))
    if arguments.report:
        words = [f"--families FAMILIES --out OUT --trials {arguments.trials}", "--kinds"]
        words += [*arguments.kinds, "--methods", *arguments.methods]
        command = " ".join(["python -m tests.benchmarks.search_methods", *words])
        write_report(arguments.out, arguments.report, arguments.kinds, arguments.methods, command)


_PLAIN = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()

"""How often a search among equals claims to have found something better.

    python configs/quickstart/make_family.py FAMILY --kind null --copies 40
    python tests/benchmarks/null_searches.py --family FAMILY --out FOLDER [--searches 100]
        [--trials 24] [--sources 3] [--limit 80] [--pairs 2000] [--finished]

Every source is the base plus noise of one size: none is better than another for any reason but
chance. Each search has its own draw of sources, its own split of the documents, and its own seed;
its run folder lies in FOLDER, and what is there is not run again (several processes may share
FOLDER: --first and --searches say which part is whose). The other rows need no search: two models
whose scores on all documents are equal, though not on each, are compared on samples of the
documents, as a winner is with a rival; and, to count more of them, any two models whose scores on
each document change places at random. Prints Markdown.
"""

import argparse
import dataclasses
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from scipy.stats import binomtest

from evomerge.assemble import evaluator, prepare
from evomerge.checkpoints.hashes import HashCache
from evomerge.config import LoadedConfig, load_config
from evomerge.scoring.scorecard import read_documents, write_documents
from evomerge.searching.baselines import whole
from evomerge.searching.finalists import decide
from evomerge.searching.intervals import Matrix, resample
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.study import find_study, read_goal
from evomerge.verbs import search

TASKS = ("capital", "dial", "sort7", "past")
SEARCHED = ("capital", "past")
"""One that is chosen, one that is generated: short searches."""


def configured(
    family: Path,
    out: Path,
    number: int,
    sources: int,
    trials: int,
    limit: int | None,
    tasks: Sequence[str] = SEARCHED,
) -> LoadedConfig:
    """The configuration of one search, written beside its run folder."""
    copies = sorted(path.name for path in (family / "models").glob("copy*"))
    chosen = random.Random(number).sample(copies, sources)
    content = {
        "base": str(family.resolve() / "models" / "base"),
        "sources": {name: str(family.resolve() / "models" / name) for name in chosen},
        "tasks": {
            task: {"folder": str(family.resolve() / "tasks"), "limit": limit} for task in tasks
        },
        "budget": {"trials": trials},
        "documents": {"seed": number},
        "seed": number,
        "dtype": "float32",
        "threads": 1,
        "output": str((out / f"{number:03}").resolve()),
    }
    file = out / f"{number:03}.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_config(file)


def search_one(loaded: LoadedConfig) -> dict[str, Any]:
    """Searches, or goes on with it, and tells how it ended.

    The verdict is given anew from what the run folder has of the holdout; the rest is not kept.
    """
    folder = RunFolder(loaded.output())
    if not (folder.path / "done").exists():
        outcome = search(loaded)
        assert outcome.verdict is not None, "the search was stopped; the same command goes on"
        shutil.rmtree(folder.path / "search")
        shutil.rmtree(folder.statistics)
        (folder.path / "done").touch()
    study = find_study(folder.storage(None))
    assert study is not None
    verdict = decide(study, folder, read_goal(study.user_attrs), loaded.config.seed)
    assert verdict is not None
    return {
        **dataclasses.asdict(verdict),
        "conclusion": verdict.conclusion,
        "baseline_won": verdict.winner == verdict.opponent,
        "worse_tasks": list(verdict.worse_tasks()),
    }


def searches(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of all searches; those that are missing are run, or left out."""
    sizes = arguments.sources, arguments.trials, arguments.limit
    return [
        search_one(configured(arguments.family, arguments.out, number, *sizes))
        for number in range(arguments.first, arguments.searches)
        if not arguments.finished or (arguments.out / f"{number:03}" / "done").exists()
    ]


def score_copies(arguments: argparse.Namespace) -> dict[str, Matrix]:
    """Task -> [documents, copies]: the score of every copy on every document."""
    loaded = configured(arguments.family, arguments.out, 0, 40, 1, None, TASKS)
    folder = arguments.out / "copies"
    folder.mkdir(exist_ok=True)
    names = tuple(loaded.config.sources)
    if any(not (folder / f"{name}.npz").exists() for name in names):
        bench = prepare(loaded, HashCache(folder / "hashes.json"))
        everything = {
            task: sorted((*split.search, *split.holdout)) for task, split in bench.splits.items()
        }
        evaluate = evaluator(bench)
        for name in names:
            recipe = whole(bench.template, "passthrough", (name,))
            card, _ = evaluate(recipe, everything, kinds=frozenset({"metric"}))
            write_documents(card.per_document, folder / f"{name}.npz")
    found = [read_documents(folder / f"{name}.npz") for name in names]
    metrics = {t: next(iter(found[0][t].values)) for t in TASKS}
    return {t: np.array([own[t].values[metrics[t]] for own in found]).T for t in TASKS}


def equal_pairs(scores: Mapping[str, Matrix]) -> list[tuple[int, int]]:
    """Copies whose mean over all documents is the same to 0.05 points."""
    means = sum(table.mean(0) / len(TASKS) for table in scores.values())
    copies = range(len(means))
    return [(a, b) for a, b in combinations(copies, 2) if abs(means[a] - means[b]) < 5e-4]


def compare(
    scores: Mapping[str, Matrix], pairs: list[tuple[int, int]], count: int, swap: bool
) -> Iterator[str]:
    """What a comparison of two models on half of the documents concludes, `count` times.

    swap: the scores of each document change places with probability 1/2, so that any two models
    are equal in truth; else a half of all documents is drawn with replacement, whose mean over all
    draws is that of all documents.
    """
    generator = np.random.default_rng(0)
    for number in range(count):
        first, second = pairs[generator.integers(len(pairs))]
        tables = {}
        for task, table in scores.items():
            own = table[generator.integers(0, len(table), len(table) // 2)]
            difference = own[:, [first]] - own[:, [second]]
            signs = generator.choice([-1.0, 1.0], difference.shape) if swap else 1.0
            tables[task] = signs * difference
        (gain,) = resample(tables, dict.fromkeys(TASKS, 1 / len(TASKS)), number, 2000).together()
        yield "better" if gain.shown else "worse" if gain.loss_shown else "no difference shown"


def line(name: str, found: Counter[str], note: str = "") -> str:
    """A row of the table, with the exact 95% interval of the share of wrong claims."""
    total = found.total()
    wrong = total - found["no difference shown"]
    low, high = binomtest(wrong, total).proportion_ci()
    columns = [name, total, *(found[c] for c in ("better", "no difference shown", "worse"))]
    share = f"{100 * wrong / total:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    return "| " + " | ".join(map(str, (*columns, share, note))) + " |"


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--searches", type=int, default=100)
    parser.add_argument("--finished", action="store_true", help="count what is there, run nothing")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--sources", type=int, default=3)
    parser.add_argument("--limit", type=int, default=80, help="documents of a task, both sides")
    parser.add_argument("--pairs", type=int, default=2000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    head = "| what | cases | better | no difference shown | worse | % claims (95%) | |"
    print(f"{head}\n|---|---:|---:|---:|---:|---:|---|", flush=True)
    rows = searches(arguments)
    if rows:
        won = sum(row["baseline_won"] for row in rows)
        tasks = sum(bool(row["worse_tasks"]) for row in rows)
        mean = np.mean([100 * row["optimism"] for row in rows])
        note = f"a baseline won {won} times; a task was called worse in {tasks} searches; "
        note += f"mean optimism {mean:+.1f} points"
        print(line("searches", Counter(row["conclusion"] for row in rows), note), flush=True)
    if arguments.pairs:
        scores = score_copies(arguments)
        equal = equal_pairs(scores)
        every = list(combinations(range(scores[TASKS[0]].shape[1]), 2))
        found = Counter(compare(scores, equal, arguments.pairs, swap=False))
        note = f"of {len(equal)} pairs"
        print(line("models of equal mean, on samples of the documents", found, note), flush=True)
        found = Counter(compare(scores, every, arguments.pairs, swap=True))
        note = f"of {len(every)} pairs"
        print(line("scores that change places at random", found, note), flush=True)


if __name__ == "__main__":
    main()

"""How often the 95% intervals of gains hold the truth.

    python tests/benchmarks/interval_coverage.py --out FOLDER [--config configs/quickstart.yaml]
        [--sizes 10 25 75 150 400] [--draws 1000] [--resamples 2000]

Thousands of documents of the tasks sort7 and past are made with the quickstart family's generator
(`pip install "evomerge[family]"`). Base, sources, plain merges and three further merges are scored
on all of them; the differences of their means are the truth. Then samples of the size of a holdout
are drawn, with replacement, and each gives the intervals that evomerge would state, and those of
other methods: the percentile bootstrap, which it used before; the normal one; BCa. Scores lie in
FOLDER, and what is there is not scored again. Prints Markdown.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from scipy.stats import norm

from evomerge.assemble import evaluator, prepare
from evomerge.checkpoints.hashes import HashCache
from evomerge.config import load_config
from evomerge.recipe import BASE, Recipe
from evomerge.scoring.scorecard import read_documents, write_documents
from evomerge.searching.baselines import baselines, whole
from evomerge.searching.intervals import Differences, Gain, Matrix, resample

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart"
TASKS = ("sort7", "past")
SHARES = dict.fromkeys(TASKS, 1 / len(TASKS))
FINALISTS = {"first": (0.3, 0.2, 0.4, 0.3), "second": (0.1, 0.3, 0.3, 0.4)}
FINALISTS |= {"third": (0.2, 0.2, 0.5, 0.2)}
"""Weights of the sources, in the order of the configuration."""
Ends = tuple[Matrix, Matrix]


def make_documents(folder: Path) -> None:
    """All examples of both tasks that no model was trained on; of past, which has 300, all."""
    if all((folder / f"{task}.jsonl").exists() for task in TASKS):
        return
    sys.path.insert(0, str(QUICKSTART))
    from family_tasks import MOST_EXAMPLES, split, write_task
    from family_tasks import TASKS as KNOWN

    for task in TASKS:
        found = split(task, 0)
        unseen = set(KNOWN[task].examples()) - set(found.training)
        chosen = sorted(unseen if len(unseen) > MOST_EXAMPLES else KNOWN[task].examples())
        write_task(folder, task, chosen, 0)


def candidates(template: Recipe) -> dict[str, Recipe]:
    """Finalists first, then the baselines that come near them."""
    names = tuple(template.sources)
    found = {
        name: whole(
            template, "task_arithmetic", names, weight=dict(zip(names, weights, strict=True))
        )
        for name, weights in FINALISTS.items()
    }
    plain = baselines(template)
    near = (BASE, *names, "linear", "task_arithmetic 0.3")
    return found | {name: plain[name] for name in near}


def score(config: Path, out: Path) -> tuple[list[str], dict[str, Matrix]]:
    """Names of the candidates; task -> [documents, candidates], their scores."""
    make_documents(out / "tasks")
    content = yaml.safe_load(config.read_text())
    for name, model in {BASE: content["base"], **content["sources"]}.items():
        path = str((config.parent / model).resolve())
        content |= {"base": path} if name == BASE else {}
        content["sources"] |= {} if name == BASE else {name: path}
    content["tasks"] = {task: {"folder": str((out / "tasks").resolve())} for task in TASKS}
    content["output"] = str((out / "run").resolve())
    (out / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    bench = prepare(load_config(out / "config.yaml"), HashCache(out / "hashes.json"))
    wanted = candidates(bench.template)
    files = {name: out / f"{name}.npz" for name in wanted}
    if not all(file.exists() for file in files.values()):
        evaluate = evaluator(bench)
        everything = {
            task: sorted((*split.search, *split.holdout)) for task, split in bench.splits.items()
        }
        for name, recipe in wanted.items():
            card, _ = evaluate(recipe, everything, kinds=frozenset({"metric"}))
            write_documents(card.per_document, files[name])
    found = [read_documents(file) for file in files.values()]
    metrics = {task: bench.goal.points.targets[task].metric for task in TASKS}
    tables = {t: np.array([own[t].values[metrics[t]] for own in found]).T for t in TASKS}
    return list(wanted), tables


def paired(tables: Mapping[str, Matrix]) -> dict[str, Matrix]:
    """Task -> [documents, pairs]: every finalist beside every baseline."""
    count = len(FINALISTS)
    return {
        task: (table[:, :count, None] - table[:, None, count:]).reshape(len(table), -1)
        for task, table in tables.items()
    }


def ends(gains: list[Gain]) -> Ends:
    """[pairs] lower and [pairs] upper ends."""
    return np.array([gain.low for gain in gains]), np.array([gain.high for gain in gains])


def means(tables: Mapping[str, Matrix], generator: Any, resamples: int) -> Matrix:
    """[resamples, pairs]: differences of documents drawn with replacement."""
    total: Any = 0.0
    for table in tables.values():
        places = generator.integers(0, len(table), (resamples, len(table)))
        places += len(table) * np.arange(resamples)[:, None]
        weights = np.bincount(places.ravel(), minlength=resamples * len(table))
        total = total + weights.reshape(resamples, -1) @ table / len(table) / len(TASKS)
    result: Matrix = total
    return result


def percentile(drawn: Matrix) -> Ends:
    """What was used before: quantiles of the resamples."""
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return low, high


def bca(tables: Mapping[str, Matrix], drawn: Matrix, value: Matrix) -> Ends:
    """Bias-corrected and accelerated (Efron 1987), of a stratified sample."""
    below = (drawn < value).mean(0) + (drawn == value).mean(0) / 2
    bias = norm.ppf(np.clip(below, 1e-3, 1 - 1e-3))
    influence = np.concatenate(
        [(table - table.mean(0)) / len(table) / len(TASKS) for table in tables.values()]
    )
    spread = (influence**2).sum(0) ** 1.5
    skew = np.divide((influence**3).sum(0), 6 * spread, out=np.zeros_like(spread), where=spread > 0)
    found = []
    for z in norm.ppf([0.025, 0.975]):
        levels = norm.cdf(bias + (bias + z) / (1 - skew * (bias + z)))
        found.append(np.array([np.quantile(drawn[:, p], q) for p, q in enumerate(levels)]))
    return found[0], found[1]


def normal(tables: Mapping[str, Matrix], value: Matrix) -> Ends:
    """Plus and minus 1.96 standard errors."""
    variance = sum(t.var(0, ddof=1) / len(t) / len(TASKS) ** 2 for t in tables.values())
    reach = norm.ppf(0.975) * np.sqrt(variance)
    return value - reach, value + reach


def one_sample(tables: Mapping[str, Matrix], seed: int, resamples: int) -> dict[str, Ends]:
    """Method -> its intervals on one sample."""
    found: Differences = resample(tables, SHARES, seed, resamples)
    drawn = means(tables, np.random.default_rng(seed), resamples)
    over_best = found.over_best(len(found.values) // len(FINALISTS))
    return {
        "percentile bootstrap (before)": percentile(drawn),
        "BCa": bca(tables, drawn, found.values),
        "normal": normal(tables, found.values),
        "bootstrap-t, one pair": ends(found.each()),
        "bootstrap-t, all pairs at once": ends(found.together()),
        "gain over the best baseline": ends(over_best),
    }


def coverage(
    tables: Mapping[str, Matrix], size: int, draws: int, resamples: int
) -> list[tuple[Any, ...]]:
    """Rows: documents per task, method, % of intervals that hold the truth, least of a pair,
    % of samples in which all of the method do, mean width in points."""
    truth = sum(table.mean(0) for table in tables.values()) / len(TASKS)
    best = truth.reshape(len(FINALISTS), -1).min(1)
    held: dict[str, list[Any]] = {}
    widths: dict[str, list[float]] = {}
    generator = np.random.default_rng(size)
    for seed in range(draws):
        sample = {t: table[generator.integers(0, len(table), size)] for t, table in tables.items()}
        for method, (low, high) in one_sample(sample, seed, resamples).items():
            aim = best if method.startswith("gain") else truth
            # A tolerance for sums in another order.
            held.setdefault(method, []).append((low <= aim + 1e-9) & (high >= aim - 1e-9))
            widths.setdefault(method, []).append(float((high - low).mean()))
    return [
        (
            size,
            method,
            f"{100 * np.mean(each):.1f}",
            f"{100 * np.mean(each, axis=0).min():.1f}",
            f"{100 * np.all(each, axis=1).mean():.1f}",
            f"{100 * np.mean(widths[method]):.1f}",
        )
        for method, each in held.items()
    ]


def main() -> None:
    """Scores what is missing, draws, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=QUICKSTART.parent / "quickstart.yaml")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 25, 75, 150, 400])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=2000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    names, scores = score(arguments.config, arguments.out)
    counts = ", ".join(f"{len(table)} documents of {task}" for task, table in scores.items())
    print(f"{counts}; points on all of them:\n\n| candidate | {' | '.join(TASKS)} | mean |")
    print("|---|" + "---:|" * (len(TASKS) + 1))
    for place, name in enumerate(names):
        own = [100 * table[:, place].mean() for table in scores.values()]
        cells = " | ".join(f"{value:.1f}" for value in (*own, np.mean(own)))
        print(f"| {name} | {cells} |")
    print("\n| documents per task | interval | % hold the truth | least of a pair ", end="")
    print(
        "| % all pairs at once | mean width, points |\n|---:|---|---:|---:|---:|---:|", flush=True
    )
    pairs = paired(scores)
    for size in arguments.sizes:
        for row in coverage(pairs, size, arguments.draws, arguments.resamples):
            print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()

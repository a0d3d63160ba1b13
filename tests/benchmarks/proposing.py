"""What a proposal costs: each sampler, by parameters and by trials before.

    python -m tests.benchmarks.proposing [--samplers NAME ...] [--parameters 24 200]
        [--trials 100 1000] [--most-gp 100] [--processor] [--storage URL] [--records]
        [--points FILE.csv] [--figure FILE.png]

The study lies in a journal file, as by default, or in a database of its own (--storage). It is
filled with random points; then the sampler proposes ten trials, which are told a smooth function.
Milliseconds of the wall clock, and of the processor where others use the machine too (--processor):
the first proposal of a process, which reads all trials, and the median of the others. A proposal is
what the loop does before it scores: asking for all parameters, writing them, the recipe, its
fingerprint, the search for a twin, and for the best trial. --records: with what it does after: the
result, and its telling. Prints Markdown. --points: adds the medians to a table, which may have
those of other storages; --figure draws all of it.
"""

import argparse
import csv
import random
import statistics
import tempfile
import time
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import optuna
import pandas as pd
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial

from evomerge.architectures import PARTS
from evomerge.methods.method import Parameter
from evomerge.recipe import Model, Recipe
from evomerge.searching.groups import Cell, make_groups
from evomerge.searching.record import FINGERPRINT, RECIPE, WORKER, worker_stamp
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.samplers import SAMPLERS, SpaceSampler
from evomerge.searching.space import Range, SearchSpace
from evomerge.searching.study import best_complete, scored_before, tell
from tests.benchmarks.measuring import CLOCK

SOURCES = 4
PROPOSALS = 10


def space_of(parameters: int) -> SearchSpace:
    """A weight for each of four sources in each layer, and in the ends."""
    layers = parameters // SOURCES - 1
    names = [f"source{number}" for number in range(SOURCES)]
    template = Recipe(base=Model(path="b"), sources={n: Model(path=n) for n in names}, rules=())

    def ranges(cell: Cell, row: Parameter) -> Range:
        return (row.low, row.high) if row.searched else float(row.default)

    return SearchSpace(
        template=template,
        groups=make_groups(
            "layers", [("attention", "mlp", "norm")], "together", layers, set(PARTS)
        ),
        methods=("task_arithmetic",),
        method_per_group=False,
        ranges=ranges,
    )


def value(parameters: dict[str, float]) -> float:
    """Highest at 0.4."""
    return -sum((number - 0.4) ** 2 for number in parameters.values())


@cache
def at_random(parameters: int, trials: int) -> list[FrozenTrial]:
    """Finished trials at random points of the space."""
    space, chance = space_of(parameters), random.Random(0)
    distributions = space.distributions()
    found = []
    for _ in range(trials):
        place = {
            name: chance.uniform(kind.low, kind.high)
            for name, kind in distributions.items()
            if isinstance(kind, FloatDistribution)
        }
        recipe = space.recipe(place)
        attributes = {RECIPE: recipe.to_json(), FINGERPRINT: recipe.fingerprint()}
        trial = optuna.trial.create_trial(
            params=place,
            distributions=distributions,
            value=value(place),
            user_attrs=attributes,
        )
        found.append(trial)
    return found


def fill(folder: RunFolder, study: optuna.Study, trials: list[FrozenTrial]) -> None:
    """Writes trials, in a journal many at once."""
    for start in range(0, len(trials), 200):
        with folder.together():
            study.add_trials(trials[start : start + 200])


def milliseconds(
    folder: RunFolder, study: optuna.Study, space: SearchSpace, *, records: bool
) -> float:
    """Of one proposal, as the loop makes it; records: and of keeping what came out."""
    start = CLOCK[0]()
    with folder.together():
        trial = study.ask()
        trial.set_user_attr(WORKER, worker_stamp("one"))
        recipe = space.propose(trial)
        fingerprint = recipe.fingerprint()
        trial.set_user_attr(RECIPE, recipe.to_json())
        trial.set_user_attr(FINGERPRINT, fingerprint)
    scored_before(study, fingerprint)
    best_complete(study)
    spent = CLOCK[0]() - start
    tell(study, trial, {"value": value(trial.params), "metrics": [], "seconds": {}})
    return 1000 * (CLOCK[0]() - start if records else spent)


def keep(file: Path, row: dict[str, object]) -> None:
    """Adds a line to the table."""
    new = not file.exists()
    with file.open("a", newline="") as table:
        writer = csv.DictWriter(table, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def draw(points: Path, file: Path) -> None:
    """Milliseconds against trials, a line for each storage, sampler and number of parameters."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    lines = pd.read_csv(points).groupby(["storage", "sampler", "parameters"])
    for (storage, sampler, parameters), own in lines:
        axes.plot(
            own.trials,
            own.milliseconds,
            label=f"{storage}, {sampler}, {parameters} parameters",
            marker={"journal": "o"}.get(storage, "s"),
            linestyle={"random": "--"}.get(sampler, "-"),
        )
    axes.set(xscale="log", yscale="log", xlabel="trials before", ylabel="ms per trial")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--parameters", nargs="+", type=int, default=[24, 200])
    parser.add_argument("--trials", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--most-gp", type=int, default=100, help="trials before, for gp")
    parser.add_argument("--storage", help="an empty database, used for one case after another")
    parser.add_argument("--records", action="store_true", help="with the telling")
    parser.add_argument("--processor", action="store_true", help="the processor's seconds")
    parser.add_argument("--points", type=Path, help="a CSV file to add to")
    parser.add_argument("--figure", type=Path, help="drawn from --points")
    arguments = parser.parse_args()
    if arguments.processor:
        CLOCK[0] = time.process_time
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    cases = [(p, t) for p in arguments.parameters for t in arguments.trials]
    head = ["sampler", *(f"{p} parameters, {t} trials" for p, t in cases)]
    print(f"| {' | '.join(head)} |\n| --- |{' ---: |' * len(cases)}")
    for name in arguments.samplers:
        cells = []
        for parameters, trials in cases:
            if name == "gp" and trials > arguments.most_gp:
                cells.append("")
                continue
            space = space_of(parameters)
            with tempfile.TemporaryDirectory() as path:
                folder = RunFolder(Path(path))
                storage = folder.storage(arguments.storage)
                study = optuna.create_study(storage=storage, direction="maximize")
                fill(folder, study, at_random(parameters, trials))
                study.sampler = SpaceSampler(SAMPLERS[name](0), space.distributions())
                first, *others = (
                    milliseconds(folder, study, space, records=arguments.records)
                    for _ in range(PROPOSALS)
                )
                optuna.delete_study(study_name=study.study_name, storage=storage)
            median = statistics.median(others)
            cells.append(f"{median:.0f} (first {first:.0f})")
            if arguments.points is not None:
                storage_name = (arguments.storage or "journal").partition("+")[0]
                row = {
                    "storage": storage_name,
                    "sampler": name,
                    "parameters": parameters,
                    "trials": trials,
                    "milliseconds": round(median, 1),
                }
                keep(arguments.points, row)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if arguments.figure is not None:
        draw(arguments.points, arguments.figure)


if __name__ == "__main__":
    main()

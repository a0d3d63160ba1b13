"""What a proposal costs: each sampler, by parameters and by trials before.

    python -m tests.benchmarks.proposing [--samplers NAME ...] [--parameters 24 200]
        [--trials 100 1000] [--most-gp 100] [--processor]

The study lies in a journal file, as by default. It is filled with random points; then the sampler
proposes ten trials, which are told a smooth function. Milliseconds of the wall clock, and of the
processor where others use the machine too (--processor): the first proposal of a process, which
reads all trials, and the median of the others. A proposal is what the loop does before it scores:
asking for all parameters, writing them, the recipe, its fingerprint, the search for a twin, and for
the best trial. Prints Markdown.
"""

import argparse
import statistics
import tempfile
import time
from functools import cache
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from evomerge.architectures import PARTS
from evomerge.methods.method import Parameter
from evomerge.recipe import Model, Recipe
from evomerge.searching.groups import Cell, make_groups
from evomerge.searching.record import FINGERPRINT, RECIPE
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.samplers import SAMPLERS, SpaceSampler
from evomerge.searching.space import Range, SearchSpace
from evomerge.searching.study import best_complete, scored_before
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
    space = space_of(parameters)
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(trials):
        trial = study.ask()
        recipe = space.propose(trial)
        trial.set_user_attr(RECIPE, recipe.to_mapping())
        trial.set_user_attr(FINGERPRINT, recipe.fingerprint())
        study.tell(trial, value(trial.params))
    return study.get_trials(deepcopy=False)


def milliseconds(folder: RunFolder, study: optuna.Study, space: SearchSpace) -> float:
    """Of one proposal, as the loop makes it."""
    start = CLOCK[0]()
    trial = study.ask()
    with folder.together():
        recipe = space.propose(trial)
    fingerprint = recipe.fingerprint()
    scored_before(study, fingerprint)
    best_complete(study)
    spent = CLOCK[0]() - start
    trial.set_user_attr(RECIPE, recipe.to_mapping())
    trial.set_user_attr(FINGERPRINT, fingerprint)
    study.tell(trial, value(trial.params))
    return 1000 * spent


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--parameters", nargs="+", type=int, default=[24, 200])
    parser.add_argument("--trials", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--most-gp", type=int, default=100, help="trials before, for gp")
    parser.add_argument("--processor", action="store_true", help="the processor's seconds")
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
                study = optuna.create_study(storage=folder.storage(None), direction="maximize")
                study.add_trials(at_random(parameters, trials))
                study.sampler = SpaceSampler(SAMPLERS[name](0), space.distributions())
                first, *others = (milliseconds(folder, study, space) for _ in range(PROPOSALS))
            cells.append(f"{statistics.median(others):.0f} (first {first:.0f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

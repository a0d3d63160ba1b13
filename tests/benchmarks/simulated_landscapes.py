"""Samplers on simulated merges, where hundreds of trials cost seconds.

    python -m tests.benchmarks.simulated_landscapes [--samplers NAME ...] [--layers 5 50]
        [--seeds 3] [--trials 200]

A weight for each of four sources in every layer and in the ends. The value falls with the squared
distance from weights that vary smoothly along the depth, with a curvature of its own for each
weight, and with the squared sum of the distances within a layer; one layer of each source is
damaged, its best weight is 0. Every search begins with task arithmetic at 0.3, 0.5, 0.7 and 1.0.
No noise. Prints Markdown: the mean over seeds of the best value after so many trials.
"""

import argparse
from collections.abc import Callable

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution

from evomerge.searching.baselines import SCALES
from evomerge.searching.samplers import SAMPLERS, SpaceSampler

SOURCES = 4
Landscape = Callable[[NDArray[np.float64]], float]


def landscape(layers: int, seed: int) -> Landscape:
    """[cells · sources] weights -> value."""
    random = np.random.default_rng(seed)
    depth = np.linspace(0, 1, layers + 1)
    best = np.empty((layers + 1, SOURCES))
    for source in range(SOURCES):
        wave = np.sin(2 * np.pi * (1.5 * random.random() * depth + random.random()))
        best[:, source] = 0.45 + 0.25 * wave + random.normal(0, 0.05, layers + 1)
        best[random.integers(layers), source] = 0.0
    curvature = np.exp(random.normal(0, 0.5, best.shape))

    def value(weights: NDArray[np.float64]) -> float:
        away = weights.reshape(best.shape) - best
        own, together = (curvature * away**2).sum(), 0.5 * (away.sum(axis=1) ** 2).sum()
        return -float(own + together) * 6 / (layers + 1)

    return value


def climb(name: str, layers: int, seed: int, trials: int) -> list[float]:
    """The best value after a quarter, a half and all of the trials."""
    cells = [*(f"layers {layer}" for layer in range(layers)), "embeddings+final_norm+head"]
    names = [f"{cell}/weight/source{source}" for cell in cells for source in range(SOURCES)]
    space: dict[str, BaseDistribution] = {n: FloatDistribution(0.0, 1.2) for n in names}
    value = landscape(layers, seed)
    study = optuna.create_study(direction="maximize")
    study.sampler = SpaceSampler(SAMPLERS[name](seed), space)
    for scale in SCALES:
        study.enqueue_trial(dict.fromkeys(names, scale))
    found = []
    for number in range(1, trials + 1):
        trial = study.ask(space)
        study.tell(trial, value(np.array([trial.params[n] for n in names])))
        if number in (trials // 4, trials // 2, trials):
            found.append(study.best_value)
    return found


def main() -> None:
    """Searches and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samplers", nargs="+", default=[n for n in SAMPLERS if n != "gp"])
    parser.add_argument("--layers", nargs="+", type=int, default=[5, 50])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=200)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    at = [arguments.trials // 4, arguments.trials // 2, arguments.trials]
    cases = [(layers, count) for layers in arguments.layers for count in at]
    head = [f"{SOURCES * (layers + 1)} numbers, {count}" for layers, count in cases]
    print(f"| sampler | {' | '.join(head)} |\n| --- |{' ---: |' * len(cases)}")
    for name in arguments.samplers:
        cells = []
        for layers in arguments.layers:
            seeds = range(arguments.seeds)
            curves = [climb(name, layers, seed, arguments.trials) for seed in seeds]
            cells += [f"{mean:.3f}" for mean in np.mean(curves, axis=0)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Proposals while other workers are at trials of their own."""

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution

from evomerge.searching.samplers import SAMPLERS, SpaceSampler
from evomerge.searching.samplers.trust_region import Matrix, fit

SPACE: dict[str, BaseDistribution] = {f"layers {n}/w": FloatDistribution(0, 1) for n in range(6)}
WORKERS = 8


def value(parameters: dict[str, float]) -> float:
    return -sum((number - 0.3) ** 2 for number in parameters.values())


def searched(name: str, workers: int, trials: int, seed: int = 0) -> optuna.Study:
    """So many trials are under way at any time; the oldest one ends first."""
    study = optuna.create_study(direction="maximize")
    study.sampler = SpaceSampler(SAMPLERS[name](seed), SPACE)
    running = []
    for _ in range(trials):
        running.append(study.ask(SPACE))
        if len(running) == workers:
            done = running.pop(0)
            study.tell(done, value(done.params))
    for done in running:
        study.tell(done, value(done.params))
    return study


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("gp", "random")])
def test_many_workers_find_better_than_chance_and_propose_different_trials(name: str) -> None:
    study = searched(name, WORKERS, 120)
    assert study.best_value > searched("random", WORKERS, 120).best_value
    places = [tuple(trial.params.values()) for trial in study.trials]
    repeats = len(places) - len(set(places))
    assert repeats <= (12 if name.startswith("nsga") else 3), "NSGA may repeat a parent"


@pytest.mark.parametrize("name", ["cma_es", "catcma"])
def test_generations_are_made_of_all_trials_whatever_their_order(name: str) -> None:
    alone, together = (searched(name, workers, 120).best_value for workers in (1, WORKERS))
    start = value(dict.fromkeys(SPACE, 0.5))
    assert together > start + 0.7 * (alone - start)


def test_points_under_way_change_what_the_model_does_not_know_alone() -> None:
    chance = np.random.default_rng(0)
    known, under_way, asked = (chance.random((count, 6)) for count in (30, 2, 20))

    def squares(one: Matrix, two: Matrix) -> Matrix:
        return ((one[:, None] - two) ** 2).sum(axis=2)

    model = fit(squares(known, known), ((known - 0.3) ** 2).sum(axis=1), 6)
    everything = np.concatenate([known, under_way])
    believing = model.with_points(squares(everything, everything))
    places = np.concatenate([asked, under_way])
    mean, deviation = model.predict(squares(places, known))
    believed, left = believing.predict(squares(places, everything))
    assert believed == pytest.approx(mean)
    assert (left <= deviation + 1e-9).all()
    assert (left[-2:] < 0.8 * deviation[-2:]).all()

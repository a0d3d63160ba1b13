"""Optuna's own samplers, made anew for every trial.

Their random numbers then depend on the trial's number alone, so that a search that was interrupted
proposes what it would have proposed without the interruption.

What they make of noise: TPE ranks all trials and splits them, so that a noisy value counts once
among many; the Gaussian process fits the size of the noise; NSGA selects by rank, and keeps the
better half of parents and children, lucky ones too. All of them take a pruned trial by its estimate
(see `SpaceSampler`).
"""

import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from evomerge.seeding import sampler_seed

_START_UP = 10  # trials that tpe and gp propose at random before they trust their model
_POPULATION = 20


class Anew(BaseSampler):
    """A sampler of Optuna, made anew for every trial from a seed of its own."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        """make: seed (32 bits) -> sampler."""
        self._make = make
        self._seed = seed
        self._trial: int | None = None
        self._sampler = make(seed)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """As the sampler says."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The sampler's proposal."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The sampler's proposal of one parameter."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if self._trial != trial.number:
            self._trial = trial.number
            self._sampler = self._make(sampler_seed(self._seed, trial.number))
        return self._sampler


def tpe(seed: int) -> BaseSampler:
    """Multivariate TPE (Watanabe 2023, arXiv 2304.11127)."""
    return Anew(lambda own: optuna.samplers.TPESampler(seed=own, n_startup_trials=_START_UP), seed)


def gp(seed: int) -> BaseSampler:
    """A Gaussian process with log expected improvement (Ament et al. 2023, arXiv 2310.20708)."""
    return Anew(lambda own: optuna.samplers.GPSampler(seed=own, n_startup_trials=_START_UP), seed)


def nsga2(seed: int) -> BaseSampler:
    """NSGA-II (Deb et al. 2002)."""
    make = optuna.samplers.NSGAIISampler
    return Anew(lambda own: make(seed=own, population_size=_POPULATION), seed)


def nsga3(seed: int) -> BaseSampler:
    """NSGA-III (Deb and Jain 2014); of one objective, it differs from NSGA-II by its ties alone."""

    def make(own: int) -> BaseSampler:
        with warnings.catch_warnings():
            # Optuna calls its interface experimental; the pinned version settles that.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.NSGAIIISampler(seed=own, population_size=_POPULATION)

    return Anew(make, seed)


def at_random(seed: int) -> BaseSampler:
    """Uniformly over the space."""
    return Anew(lambda own: optuna.samplers.RandomSampler(seed=own), seed)

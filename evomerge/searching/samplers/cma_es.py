"""CMA-ES (Hansen, arXiv 1604.00772; package `cmaes`), started from the best trial before it.

Its state is rebuilt from the study's finished trials, generation by generation, so nothing but
plain numbers is stored: a resume, and every further process, goes on with the same distribution.

Under constraints, candidates that keep all limits rank before those that break one, and these by
how much they break (Deb 2000, doi 10.1016/S0045-7825(99)00389-8). Only ranks within a generation
count.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from cmaes import CMA, SepCMA
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

GENERATION = "cma_es:generation"
_SEPARABLE = 60  # parameters above which the covariance matrix is kept diagonal
_STEP = 1 / 6  # initial standard deviation, as a share of each range

Vector = NDArray[np.float64]
Loss = tuple[float, float]
"""By how much limits are broken, all together; and the loss where they are equally broken."""


class CmaEsSampler(BaseSampler):
    """For spaces of numbers that stand in every trial; anything else is drawn at random."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = RandomSampler(seed=seed)
        self._optimiser: CMA | SepCMA | None = None

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The parameters that all finished trials share."""
        return optuna.search_space.intersection_search_space(study.get_trials(deepcopy=False))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """One draw from the distribution that the finished generations have shaped."""
        box = {k: d for k, d in search_space.items() if isinstance(d, FloatDistribution)}
        if not box:
            return {}
        low = np.array([kind.low for kind in box.values()])
        width = np.array([kind.high for kind in box.values()]) - low
        finished = study._get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
        told = [
            (
                (np.array([past.params[name] for name in box]) - low) / width,
                (_broken(past), sign * past.values[0]),
                past.system_attrs.get(GENERATION),
            )
            for past in finished
        ]
        optimiser = self._restore(len(box), told)
        study._storage.set_trial_system_attr(trial._trial_id, GENERATION, optimiser.generation)
        point = low + optimiser.ask() * width
        return {
            name: _on_grid(value, kind)
            for (name, kind), value in zip(box.items(), point.tolist(), strict=True)
        }

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """For categories, and parameters that not all trials share."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _restore(
        self, dimension: int, told: Sequence[tuple[Vector, Loss, int | None]]
    ) -> CMA | SepCMA:
        """The optimiser after every full generation among (point, loss, generation)."""
        if self._optimiser is None:
            first = next((i for i, t in enumerate(told) if t[2] is not None), len(told))
            before = min(told[:first], key=lambda t: t[1], default=None)
            mean = np.full(dimension, 0.5) if before is None else np.clip(before[0], 0.0, 1.0)
            bounds = np.tile([0.0, 1.0], (dimension, 1))
            kind = SepCMA if dimension > _SEPARABLE else CMA
            self._optimiser = kind(mean=mean, sigma=_STEP, bounds=bounds, seed=self._seed)
        optimiser = self._optimiser
        while True:
            current = [(t[0], t[1]) for t in told if t[2] == optimiser.generation]
            if len(current) < optimiser.population_size:
                return optimiser
            optimiser.tell(_ranked(current[: optimiser.population_size]))


def _broken(trial: FrozenTrial) -> float:
    return sum(max(0.0, amount) for amount in trial.constraints.values())


def _ranked(generation: Sequence[tuple[Vector, Loss]]) -> list[tuple[Vector, float]]:
    """With one number each: the loss itself where no limit is broken."""
    worst = max((loss for _, (broken, loss) in generation if not broken), default=0.0)
    order = sorted({loss for _, loss in generation if loss[0]})
    return [
        (point, worst + 1 + order.index(loss) if loss[0] else loss[1]) for point, loss in generation
    ]


def _on_grid(value: float, kind: FloatDistribution) -> float:
    """The nearest value that the parameter may take."""
    if kind.step is not None:
        value = round(kind.low + round((value - kind.low) / kind.step) * kind.step, 10)
    return min(max(value, kind.low), kind.high)

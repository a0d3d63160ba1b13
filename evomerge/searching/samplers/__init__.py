"""The samplers, by the names that a configuration uses, and the rule behind `auto`.

A sampler is made anew for every process, from a seed that depends on the trials so far: all that
it knows, it reads from the study's finished trials.
"""

import warnings
from collections.abc import Callable, Container, Mapping
from copy import copy
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from evomerge.searching.samplers.cma_es import CmaEsSampler

_START_UP = 10  # trials that tpe and gp propose at random before they trust their model


def _tpe(seed: int) -> BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=_START_UP)


def _gp(seed: int) -> BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=_START_UP)


def _nsga2(seed: int) -> BaseSampler:
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=20)


def _nsga3(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.samplers.NSGAIIISampler(seed=seed, population_size=20)


def _random(seed: int) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "cma_es": CmaEsSampler,
    "tpe": _tpe,
    "gp": _gp,
    "nsga2": _nsga2,
    "nsga3": _nsga3,
    "random": _random,
}
NO_CATEGORIES = ("cma_es",)
"""Samplers that cannot propose categories."""


ONE_OBJECTIVE = ("cma_es",)
"""Samplers that climb a single objective."""


def choose_sampler(
    space: Mapping[str, BaseDistribution], trials: int | None, objectives: int = 1
) -> tuple[str, str]:
    """(name, reason) of the sampler that suits a space, a budget and a number of objectives.

    Categories: TPE. Numbers alone: a Gaussian process while its model is affordable (30 numbers,
    100 trials), CMA-ES beyond. Several objectives: a Gaussian process for two or three, 30 numbers
    and 250 trials; TPE for categories and as many trials; beyond NSGA-II, and NSGA-III for four
    objectives or more.
    """
    if objectives > 1:
        return _choose_for_several(space, trials, objectives)
    if any(isinstance(kind, CategoricalDistribution) for kind in space.values()):
        return "tpe", "the space has categories"
    if len(space) <= 30 and trials is not None and trials <= 100:
        return "gp", f"{len(space)} numbers and {trials} trials are few enough for its model"
    return "cma_es", f"{len(space)} numbers without categories"


def _choose_for_several(
    space: Mapping[str, BaseDistribution], trials: int | None, objectives: int
) -> tuple[str, str]:
    few = trials is not None and trials <= 250
    words = f"{objectives} objectives, {trials or 'any number of'} trials"
    if few and any(isinstance(kind, CategoricalDistribution) for kind in space.values()):
        return "tpe", f"{words}, and the space has categories"
    if few and objectives <= 3 and len(space) <= 30:
        return "gp", f"{words} and {len(space)} numbers are few enough for its model"
    return ("nsga2" if objectives <= 3 else "nsga3"), f"{words}, {len(space)} parameters"


class SpaceSampler(BaseSampler):
    """Lets a sampler see the whole space from the first trial on, and only trials inside it.

    Baselines need not lie in the space, so their records may lack parameters; Optuna's samplers
    take the parameters that all trials share, or fail on the missing ones.
    """

    def __init__(self, inner: BaseSampler, space: Mapping[str, BaseDistribution]) -> None:
        self._inner = inner
        self._space = dict(space)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {name: kind for name, kind in self._space.items() if not kind.single()}

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        inside = _TrialsInside(study, self._space.keys())
        return self._inner.sample_relative(inside, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        inside = _TrialsInside(study, self._space.keys())
        return self._inner.sample_independent(inside, trial, param_name, param_distribution)


class _TrialsInside(optuna.Study):
    """A study without the trials that lack parameters; as Optuna's own _FilteredStudy does.

    A pruned trial stands in it as a complete one whose value is its estimate: most samplers of
    Optuna ignore pruned trials, or take them for the worst.
    """

    def __init__(self, study: optuna.Study, names: Any) -> None:
        super().__init__(study.study_name, study._storage, sampler=study.sampler)
        self._names = names

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        trials = [_as_complete(t) for t in super()._get_trials(deepcopy, None, use_cache)]
        # Under constraints, Optuna's samplers fail on trials that do not say how they keep them:
        # pruned ones, where the metric under constraint was not scored yet.
        limits = max((set(trial.constraints) for trial in trials), key=len, default=set[str]())
        return [
            trial
            for trial in trials
            if (states is None or trial.state in states)
            and (
                not trial.state.is_finished()
                or (self._names <= trial.params.keys() and set(trial.constraints) == limits)
            )
        ]


def _as_complete(trial: FrozenTrial) -> FrozenTrial:
    """Optuna gives a pruned trial the value that it reported last: its estimate."""
    if trial.state != TrialState.PRUNED or trial.values is None:
        return trial
    shown = copy(trial)
    shown.state = TrialState.COMPLETE
    return shown

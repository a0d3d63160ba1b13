"""The samplers, by the names that a configuration uses, and the rule behind `auto`.

A sampler is made anew for every process: all that it knows, it reads from the study's finished
trials, and its random numbers follow from the search's seed and the number of the trial. A search
that was interrupted therefore goes on with the proposals that it would have made anyway.
"""

from collections.abc import Callable, Container, Mapping
from copy import copy
from functools import partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from evomerge.searching.samplers.catcma import CatCma
from evomerge.searching.samplers.cma_es import CmaEs
from evomerge.searching.samplers.coarse_to_fine import CoarseToFine
from evomerge.searching.samplers.evolution_strategy import EvolutionStrategy
from evomerge.searching.samplers.optunas import at_random, gp, nsga2, nsga3, tpe
from evomerge.searching.samplers.replayed import ESTIMATED, Replayed
from evomerge.searching.samplers.trust_region import TrustRegion

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "cma_es": partial(Replayed, "cma_es", CmaEs),
    "catcma": partial(Replayed, "catcma", CatCma),
    "evolution_strategy": partial(Replayed, "evolution_strategy", EvolutionStrategy),
    "coarse_to_fine": partial(Replayed, "coarse_to_fine", CoarseToFine),
    "trust_region": partial(Replayed, "trust_region", TrustRegion),
    "tpe": tpe,
    "gp": gp,
    "nsga2": nsga2,
    "nsga3": nsga3,
    "random": at_random,
}
"""Name -> what makes the sampler from a search's seed."""
NO_CATEGORIES = ("cma_es",)
"""Samplers that cannot propose categories."""


ONE_OBJECTIVE = ("cma_es", "catcma", "evolution_strategy", "coarse_to_fine", "trust_region")
"""Samplers that climb a single objective."""


def choose_sampler(
    space: Mapping[str, BaseDistribution], trials: int | None = None, objectives: int = 1
) -> tuple[str, str]:
    """(name, reason) of the sampler that suits a space, a budget and a number of objectives.

    The trust region: at an equal number of scored documents it came furthest on the search
    documents of the damaged-layers family, with 24 numbers and with several methods, and by far in
    simulations of 24 and 204 numbers; a proposal costs less than a tenth of a second of the
    processor with 200 numbers after 1,000 trials (results/benchmarks/samplers, and proposing). Its
    model has numbers in mind: spaces of more categories than numbers are left to TPE. Nothing was
    measured beyond 300 trials.

    Several objectives: a Gaussian process for two or three, 30 numbers and 250 trials; TPE for
    categories and as many trials; beyond NSGA-II, and NSGA-III for four objectives or more.
    """
    if objectives > 1:
        return _choose_for_several(space, trials, objectives)
    categories = sum(isinstance(kind, CategoricalDistribution) for kind in space.values())
    numbers = len(space) - categories
    if categories > numbers:
        return "tpe", f"{categories} categories and {numbers} numbers"
    beside = f" and {categories} categories" if categories else ""
    return "trust_region", f"{numbers} numbers{beside}"


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
        self._shown: dict[int, FrozenTrial | None] = {}

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
        inside = _TrialsInside(study, self._space.keys(), self._shown)
        return self._inner.sample_relative(inside, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        inside = _TrialsInside(study, self._space.keys(), self._shown)
        return self._inner.sample_independent(inside, trial, param_name, param_distribution)


class _TrialsInside(optuna.Study):
    """A study without the trials that lack parameters; as Optuna's own _FilteredStudy does.

    A pruned trial stands in it as a complete one whose value is its estimate: most samplers of
    Optuna ignore pruned trials, or take them for the worst.
    """

    def __init__(
        self, study: optuna.Study, names: Any, shown: dict[int, FrozenTrial | None]
    ) -> None:
        """shown: number -> how a finished trial is shown, None: not at all; grows."""
        super().__init__(study.study_name, study._storage, sampler=study.sampler)
        self._names = names
        self._shown = shown

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        shown = [self._show(t) for t in super()._get_trials(deepcopy, None, use_cache)]
        inside = [trial for trial in shown if trial is not None]
        # Under constraints, Optuna's samplers fail on trials that do not say how they keep them:
        # pruned ones, where the metric under constraint was not scored yet.
        limits = max((set(trial.constraints) for trial in inside), key=len, default=set[str]())
        return [
            trial
            for trial in inside
            if (states is None or trial.state in states)
            and (not trial.state.is_finished() or set(trial.constraints) == limits)
        ]

    def _show(self, trial: FrozenTrial) -> FrozenTrial | None:
        if not trial.state.is_finished():
            return trial
        if trial.number not in self._shown:
            inside = self._names <= trial.params.keys()
            self._shown[trial.number] = _as_complete(trial) if inside else None
        return self._shown[trial.number]


def _as_complete(trial: FrozenTrial) -> FrozenTrial:
    """Optuna gives a pruned trial the value that it reported last: its estimate."""
    if trial.state != TrialState.PRUNED or trial.values is None:
        return trial
    shown = copy(trial)
    shown.state = TrialState.COMPLETE
    shown.system_attrs = {**trial.system_attrs, ESTIMATED: True}
    return shown

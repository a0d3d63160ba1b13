"""Samplers whose whole state follows from the finished trials: what they share.

Such a sampler is written as a `Proposer`, which knows nothing of Optuna. `Replayed` tells it every
finished trial once, in the order of their numbers, and keeps with each proposal what the proposer
notes beside it. A resume, and every further process, replays the trials and so goes on where the
search was; the random numbers follow from the search's seed and the trial's number.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from evomerge.searching.samplers.coordinates import Coordinates, Past, Point
from evomerge.seeding import sampler_seed

ESTIMATED = "estimated"
"""System attribute of a pruned trial that is shown as a complete one: its value is an estimate."""


class Proposer(Protocol):
    """Finds the next point from those that were tried."""

    def learn(self, past: Past) -> None:
        """Takes in a finished trial: a proposal of its own, a baseline, or one from elsewhere."""
        ...

    def propose(
        self, random: np.random.Generator, under_way: Sequence[Point] = ()
    ) -> tuple[Point, Any]:
        """The next point, and a note on it (of what JSON knows), which comes back as its mark.

        under_way: the points that other workers are at.
        """
        ...


MakeProposer = Callable[[Coordinates], Proposer]


class Replayed(BaseSampler):
    """A proposer as a sampler of Optuna, for spaces that all trials with parameters share."""

    def __init__(self, name: str, make: MakeProposer, seed: int) -> None:
        """name: under which notes are kept with the trials. seed: the search's."""
        self._mark = f"{name}:note"
        self._make = make
        self._seed = seed
        self._random = RandomSampler(seed=seed)
        self._seen: set[int] = set()
        self._known: tuple[Coordinates, Proposer] | None = None

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The parameters that all finished trials share."""
        return optuna.search_space.intersection_search_space(study.get_trials(deepcopy=False))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The proposer's next point, after it was told all trials that ended since the last."""
        if not search_space:
            return {}
        if self._known is None:
            own = Coordinates(search_space)
            self._known = own, self._make(own)
        coordinates, proposer = self._known
        sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
        for past in study._get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if past.number in self._seen:
                continue
            self._seen.add(past.number)
            proposer.learn(
                Past(
                    number=past.number,
                    point=coordinates.point(past.params),
                    loss=sign * past.values[0],
                    broken=sum(max(0.0, amount) for amount in past.constraints.values()),
                    estimated=past.system_attrs.get(ESTIMATED, False),
                    mark=past.system_attrs.get(self._mark),
                )
            )
        seed = sampler_seed(self._seed, trial.number)
        under_way = [
            coordinates.point(other.params)
            for other in study._get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if other.number != trial.number and search_space.keys() <= other.params.keys()
        ]
        point, note = proposer.propose(np.random.default_rng(seed), under_way)
        study._storage.set_trial_system_attr(trial._trial_id, self._mark, note)
        return coordinates.parameters(point)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """At random, for parameters outside of the space."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

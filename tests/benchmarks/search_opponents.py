"""What evomerge's search is compared with: plain loops over the same space and the same documents.

An opponent scores every candidate in full on the tasks' own metrics, keeps nothing but the best,
and stops where the documents are spent: no baselines first, no early stopping, no finalists. What
it would export is its best by the score on the search documents.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import optuna
from cmaes import CMA
from optuna.samplers import BaseSampler

from evomerge.recipe import Recipe
from evomerge.searching.baselines import baselines, whole
from evomerge.searching.space import SearchSpace

COEFFICIENTS = tuple(np.linspace(0.05, 1.25, 25).round(2).tolist())
"""The grid of task arithmetic's global coefficient."""
_MERGEKIT_STEP = 1 / 6  # initial standard deviation of every weight


class DocumentsSpent(Exception):  # noqa: N818 - the end of a loop, not a failure
    """One more candidate would cost more documents than are left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incumbent:
    """A candidate that was better on the search documents than all before it."""

    documents: int
    """Scored up to and with it, of all candidates."""
    value: float
    recipe: Recipe


@dataclass(slots=True, kw_only=True)
class Contest:
    """Counts the documents of one opponent's candidates and remembers the best of them."""

    value_of: Callable[[Recipe], float]
    """Scores a candidate on all search documents; higher is better."""
    cost: int
    """Search documents, all of which a candidate is scored on."""
    limit: int
    """Documents that may be scored in all."""
    documents: int = 0
    incumbents: list[Incumbent] = field(default_factory=list)

    def score(self, recipe: Recipe) -> float:
        """The candidate's value; raises DocumentsSpent where there are too few documents left."""
        if self.documents + self.cost > self.limit:
            raise DocumentsSpent
        self.documents += self.cost
        value = self.value_of(recipe)
        if not self.incumbents or value > self.incumbents[-1].value:
            best = Incumbent(documents=self.documents, value=value, recipe=recipe)
            self.incumbents.append(best)
        return value

    def incumbent(self, share: float) -> Incumbent | None:
        """The best when a share of the documents was spent; None before the first candidate."""
        spent = share * self.limit
        return next((x for x in reversed(self.incumbents) if x.documents <= spent), None)


Opponent = Callable[[SearchSpace, Contest, int], None]
"""Proposes candidates of a space to a contest, from a seed, until DocumentsSpent or its own end."""


def _optuna(sampler: Callable[[int], BaseSampler], space: SearchSpace, to: Contest, s: int) -> None:
    """One of Optuna's samplers, with its defaults but for the seed."""
    study = optuna.create_study(direction="maximize", sampler=sampler(s))
    while True:
        trial = study.ask()
        study.tell(trial, to.score(space.propose(trial)))


def cma_es(space: SearchSpace, contest: Contest, seed: int) -> None:
    """CMA-ES as mergekit-evolve sets it up: from equal weights that sum to 1, with steps of 1/6 and
    the usual population (4 + ⌊3 ln n⌋); weights are unbounded, and their absolute values count.
    """
    names = list(space.distributions())
    start = np.full(len(names), 1 / len(space.template.sources))
    optimiser = CMA(mean=start, sigma=_MERGEKIT_STEP, seed=seed)
    while True:
        told = []
        for _ in range(optimiser.population_size):
            point = optimiser.ask()
            weights = dict(zip(names, np.abs(point).tolist(), strict=True))
            told.append((point, -contest.score(space.recipe(weights))))
        optimiser.tell(told)


def grid(space: SearchSpace, contest: Contest, seed: int) -> None:
    """Task arithmetic of all sources with one coefficient for the whole model."""
    names = tuple(space.template.sources)
    for coefficient in COEFFICIENTS:
        weight = dict.fromkeys(names, coefficient)
        contest.score(whole(space.template, "task_arithmetic", names, weight=weight))


def uniform(space: SearchSpace, contest: Contest, seed: int) -> None:
    """The plain average of all sources."""
    contest.score(baselines(space.template)["linear"])


OPPONENTS: Mapping[str, Opponent] = {
    "random": partial(_optuna, lambda seed: optuna.samplers.RandomSampler(seed=seed)),
    "cma_es": cma_es,
    "tpe": partial(_optuna, lambda seed: optuna.samplers.TPESampler(seed=seed)),
    "nsga2": partial(_optuna, lambda seed: optuna.samplers.NSGAIISampler(seed=seed)),
    "gp": partial(_optuna, lambda seed: optuna.samplers.GPSampler(seed=seed)),
    "grid": grid,
    "uniform": uniform,
}


def compete(opponent: Opponent, space: SearchSpace, contest: Contest, seed: int) -> None:
    """Runs an opponent to its end."""
    try:
        opponent(space, contest, seed)
    except DocumentsSpent:
        return

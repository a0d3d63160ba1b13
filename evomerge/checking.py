"""What can be known before a search: models, groups, memory, noise, a forecast."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from optuna.distributions import CategoricalDistribution

from evomerge.assemble import Bench, evaluator, prepare
from evomerge.checkpoints.hashes import HashCache
from evomerge.config import BudgetConfig, LoadedConfig, load_config
from evomerge.errors import UserError
from evomerge.merging.throughput import Throughput, measure
from evomerge.methods import METHODS
from evomerge.recipe import BASE
from evomerge.scorers import published
from evomerge.scoring.scorecard import Scorecard
from evomerge.searching.baselines import SCALES, baselines
from evomerge.searching.intervals import Scored
from evomerge.searching.loop import Budget
from evomerge.searching.power import Power, deviations, power
from evomerge.searching.samplers import (
    NO_CATEGORIES,
    ONE_OBJECTIVE,
    SAMPLERS,
    choose_sampler,
)
from evomerge.searching.stacks import StackSpace

_PROBE_DOCUMENTS = 16  # per task: enough for a forecast, seconds even for large models


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What `check` found out."""

    bench: Bench
    parameters: int
    sampler: tuple[str, str]
    """(name, reason)."""
    seconds_per_trial: float | None
    """Extrapolated from a probe; None without one."""
    seconds_of_merge: float | None
    """To make the probe's candidate, by task arithmetic; None without a probe."""
    throughput: tuple[Throughput, ...]
    """Of each method of the space; none without a probe."""
    budget: Budget
    base: Scorecard | None
    """Of the probe's few documents; None without a probe."""
    published: Mapping[str, str]
    """Task -> the public test set that its documents are from, in words."""
    power: Power | None
    """Which gains the documents show; None where nothing is known of their noise."""

    def seconds_per_candidate(self) -> float | None:
        """To make a candidate of the whole model with the slowest method; None without a probe."""
        memory = self.bench.memory
        size = memory.model_bytes + memory.operand_bytes
        return max((size / each.bytes_per_second for each in self.throughput), default=None)

    def forecast(self) -> int | None:
        """Trials scored in full that the budget allows; None where that is not known."""
        trials = self.budget.full_trials(_trial_documents(self.bench))
        limits = [] if trials is None else [trials]
        if self.budget.deadline is not None and self.seconds_per_trial:
            left = (self.budget.deadline - datetime.now()).total_seconds()
            limits.append(int(left / self.seconds_per_trial))
        return min(limits, default=None)


def check(config: LoadedConfig | Path | str, *, probe: bool = True) -> Check:
    """Everything that can be known before a search; nothing is written.

    probe: also scores the base on a few documents, to tell how its answers end, and makes and
    scores a candidate on them, to forecast the number of trials.
    """
    loaded = loaded_config(config)
    bench = prepare(loaded, HashCache(loaded.output() / "hashes.json"))
    distributions = bench.space.distributions()
    budget = budget_of(loaded.config.budget)
    base, plain, merging, scoring = _probe(bench) if probe else (None, None, None, None)
    return Check(
        bench=bench,
        parameters=len(distributions),
        sampler=sampler_choice(bench, budget),
        seconds_per_trial=None if merging is None or scoring is None else merging + scoring,
        seconds_of_merge=merging,
        throughput=_throughput(bench) if probe else (),
        budget=budget,
        base=base,
        published=published(bench.scorer),
        power=_power(bench, None if base is None or plain is None else (base, plain)),
    )


def loaded_config(config: LoadedConfig | Path | str) -> LoadedConfig:
    """A configuration, read where it is a path."""
    return config if isinstance(config, LoadedConfig) else load_config(config)


def budget_of(config: BudgetConfig) -> Budget:
    """The limits of a search that starts now."""
    return Budget(
        trials=config.trial_limit(),
        documents=config.documents,
        deadline=config.deadline(datetime.now()),
    )


def _trial_documents(bench: Bench) -> int:
    """Documents of a trial that is scored in full, each kind counted."""
    return len(bench.goal.trial_kinds) * sum(map(len, bench.documents("search").values()))


def sampler_choice(bench: Bench, budget: Budget) -> tuple[str, str]:
    """(name, reason); UserError for a sampler that cannot propose this space."""
    name = bench.loaded.config.sampler
    distributions = bench.space.distributions()
    if name == "auto":
        if isinstance(bench.space, StackSpace) and not bench.goal.several:
            return "tpe", "stacks change at thresholds, which small steps seldom cross"
        trials = budget.full_trials(_trial_documents(bench))
        return choose_sampler(distributions, trials, max(1, len(bench.goal.parts)))
    categories = [k for k, d in distributions.items() if isinstance(d, CategoricalDistribution)]
    if name in NO_CATEGORIES and categories:
        raise UserError(
            f"{bench.loaded.file}: sampler: {name} cannot propose categories, and the space has "
            f"{', '.join(categories[:3])}; use trust_region, catcma or tpe, or one method"
        )
    if name in ONE_OBJECTIVE and bench.goal.several:
        others = ", ".join(known for known in SAMPLERS if known not in ONE_OBJECTIVE)
        raise UserError(
            f"{bench.loaded.file}: sampler: {name} climbs a single objective, and there are "
            f"{len(bench.goal.parts)}; use auto, or one of {others}"
        )
    return name, "as configured"


def _throughput(bench: Bench) -> tuple[Throughput, ...]:
    dtype, count = getattr(torch, bench.template.dtype), len(bench.template.sources)
    return tuple(
        measure(method, count, dtype, bench.device, bench.run)
        for method in bench.space.methods
        if METHODS[method].matrix is None and METHODS[method].solve is None
    )


def _probe(bench: Bench) -> tuple[Scorecard, Scorecard, float, float]:
    """The scores of the base and of a plain merge on a few documents, then the seconds to make one
    candidate, and to score it on the search documents, extrapolated from these few. What comes
    first pays for first reads and, of every method, for compiling."""
    few = {task: split.search[:_PROBE_DOCUMENTS] for task, split in bench.splits.items()}
    plain = baselines(bench.template)
    first, second = (plain[f"task_arithmetic {scale:g}"] for scale in SCALES[:2])
    evaluate = evaluator(bench)
    base, _ = evaluate(plain[BASE], few)
    merged, _ = evaluate(first, few)
    _, seconds = evaluate(second, few, kinds=bench.goal.trial_kinds)
    share = sum(map(len, few.values())) / sum(len(s.search) for s in bench.splits.values())
    return base, merged, seconds["merge"], (seconds["model"] + seconds["metric"]) / share


def _power(bench: Bench, cards: tuple[Scorecard, Scorecard] | None) -> Power | None:
    """What the documents can show, from the noise between two candidates, or from a bound of it."""
    objective = bench.goal.points
    pair = None
    if cards is not None:
        first, second = (
            Scored(metrics=objective.metrics(card), documents=card.per_document) for card in cards
        )
        pair = first, second
    noise = deviations(objective, pair)
    if noise is None:
        return None
    return power(
        noise,
        objective.shares(),
        {task: len(split.search) for task, split in bench.splits.items()},
        {task: len(split.holdout) for task, split in bench.splits.items()},
        bench.loaded.config.finalist_count(),
        probed=pair is not None,
    )

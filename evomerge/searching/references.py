"""What a run takes from its base and its sources, once these are scored: scales and limits.

With `normalise: spread` a task's metric enters the objective as (value - base) / unit, the unit
being the largest distance of a source from the base, up or down, and at least the noise: 1.96
standard errors of the paired difference over the search documents. With `share` the unit is the
gain of the best source over the base; where that is not above the noise, the spread.

Found once, kept in the study, and never changed: the values of all trials are in these units.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from math import sqrt
from typing import Any, Literal

import numpy as np
import optuna

from evomerge.errors import UserError, did_you_mean
from evomerge.recipe import BASE
from evomerge.scoring.scorecard import from_json
from evomerge.searching.constraints import Constraint, LimitKind
from evomerge.searching.intervals import Scored, is_mean
from evomerge.searching.objective import Goal, Normalise, Objective, Scale
from evomerge.searching.record import BASELINE, RESULT
from evomerge.searching.run_folder import RunFolder

REFERENCES = "references"
"""Study attribute: scales by kind, the base's metrics under constraint, and notes in words."""

_NOISE = 1.96
_SHARES = re.compile(r"(\w+_)?(acc|exact_match|em|f1|mcc)(_\w+)?|pass@\d+")
"""Metrics between 0 and 1 (or -1 and 1), whose means over tasks are usual."""


def is_share(metric: str) -> bool:
    """Whether "metric,filter" is known to lie between 0 and 1, or -1 and 1."""
    return _SHARES.fullmatch(metric.partition(",")[0]) is not None


def choose_normalisation(
    wanted: Normalise | Literal["auto"], objectives: Iterable[Objective]
) -> tuple[Normalise, str]:
    """(kind, reason). auto: raw where all metrics of each objective have one scale, else spread.

    Not share: the less the sources gain in a task, the more it would count; and what a merge can
    reach there is not bounded by what they do.
    """
    if wanted != "auto":
        return wanted, "as configured"
    for objective in objectives:
        metrics = {task: objective.targets[task].metric for task in objective.shares()}
        other = next((task for task, metric in metrics.items() if not is_share(metric)), None)
        if other is not None and len(set(metrics.values())) > 1:
            text = f"{metrics[other]} of task {other!r} has another scale than the others' metrics"
            return "spread", text
    return "raw", "metrics have one scale"


def make_constraints(
    limits: Mapping[str, Mapping[LimitKind, float]], objective: Objective
) -> tuple[Constraint, ...]:
    """Of task -> kind of limit -> amount; UserError for a task that is not scored, and for a limit
    that its metric cannot reach."""
    found = []
    for task, given in limits.items():
        if task not in objective.targets:
            raise UserError(f"constraints.{task}: {did_you_mean(task, objective.targets)}")
        metric = objective.targets[task].metric
        for kind, amount in given.items():
            if kind != "below_base" and is_share(metric) and not -1 <= amount <= 1:
                raise UserError(
                    f"constraints.{task}.{kind}: got {amount:g}, and {metric} lies between 0 and 1"
                )
            found.append(Constraint(task=task, metric=metric, kind=kind, amount=amount))
    return tuple(found)


def scales_of(
    kind: Normalise, objective: Objective, base: Scored, sources: Mapping[str, Scored]
) -> tuple[dict[str, Scale], list[str]]:
    """Task -> scale; and in words, what is not as `kind` says."""
    scales, notes = {}, []
    for task in objective.shares():
        zero = _signed(base, task)
        gains = {name: _signed(scored, task) - zero for name, scored in sources.items()}
        noises = {
            name: _NOISE * _error(scored, base, objective, task) for name, scored in sources.items()
        }
        best = max(gains, key=lambda name: gains[name])
        far = max(gains, key=lambda name: abs(gains[name]))
        unit = max(max(abs(gains[name]), noises[name]) for name in sources)
        if kind == "share" and gains[best] > noises[best]:
            unit = gains[best]
        elif kind == "share":
            notes.append(
                f"{task}: no source is above the base by more than noise ({best} by "
                f"{gains[best]:.4g}, noise {noises[best]:.4g}); 100 % is the spread, {unit:.4g}"
            )
        elif abs(gains[far]) <= noises[far]:
            notes.append(
                f"{task}: no source differs from the base by more than noise; 100 % is the noise, "
                f"{unit:.4g}"
            )
        if unit == 0:
            notes.append(f"{task}: sources score as the base does; its metric counts as it is")
            unit = 1.0
        scales[task] = Scale(zero=zero, unit=unit)
    return scales, notes


def settle(study: optuna.Study, folder: RunFolder, goal: Goal, sources: tuple[str, ...]) -> Goal:
    """The goal with scales and limits, once base and sources are scored; before, the same goal.

    sources: their names. UserError where the base failed, or every source.
    """
    known = study.user_attrs.get(REFERENCES)
    if goal.settled or known is not None:
        return with_references(goal, known)
    names = (BASE,) if goal.normalise == "raw" else (BASE, *sources)
    found = {name: _result(study, name) for name in names}
    if None in found.values():
        return goal
    failures = {n: r["failure"] for n, (_, r) in found.items() if "failure" in r}  # type: ignore[misc]
    scored = {n: pair for n, pair in found.items() if pair is not None and n not in failures}
    if BASE not in scored or (names != (BASE,) and len(scored) == 1):
        raise UserError(
            f"what trials are worth depends on scores of base and sources (normalise: "
            f"{goal.normalise}, constraints below_base), and these failed: {failures}; mend that, "
            "or use `normalise: raw` and limits `at_least`"
        )
    facts = _facts(goal, folder, scored)
    study.set_user_attr(REFERENCES, facts)
    return with_references(goal, facts)


def with_references(goal: Goal, facts: Mapping[str, Any] | None) -> Goal:
    """The goal with what the study keeps under REFERENCES; None: as it is."""
    if facts is None:
        return goal
    metric, smooth = (
        {task: Scale(**row) for task, row in facts["scales"].get(kind, {}).items()}
        for kind in ("metric", "smooth")
    )
    return replace(
        goal,
        points=replace(goal.points, scales=metric, normalise=goal.normalise),
        smooth_scales=smooth,
        constraints=tuple(c.with_base(facts["base"].get(c.task)) for c in goal.constraints),
    )


def _facts(
    goal: Goal, folder: RunFolder, found: Mapping[str, tuple[int, Mapping[str, Any]]]
) -> dict[str, Any]:
    kinds = {"metric": goal.points}
    if goal.kind != "metric":
        kinds["smooth"] = goal.points.smooth()
    scales, notes = {}, []
    for kind, objective in kinds.items() if goal.normalise != "raw" else ():
        scored = {
            name: Scored(
                metrics=objective.found(from_json(result["metrics"])) or {},
                documents=folder.scores("search", number),
            )
            for name, (number, result) in found.items()
        }
        base = scored.pop(BASE)
        own, words = scales_of(goal.normalise, objective, base, scored)
        scales[kind] = {task: asdict(scale) for task, scale in own.items()}
        notes += [f"{kind}: {text}" for text in words]
    of_base = {(m.task, m.name): m.value for m in from_json(found[BASE][1]["metrics"])}
    base_values = {c.task: of_base[c.task, c.metric] for c in goal.constraints}
    return {"scales": scales, "base": base_values, "notes": notes}


def _result(study: optuna.Study, baseline: str) -> tuple[int, Mapping[str, Any]] | None:
    """(trial, what it scored, or why it failed) of a baseline; None before its end."""
    ended = None
    for trial in study.get_trials(deepcopy=False):
        result = trial.user_attrs.get(RESULT, {})
        if trial.user_attrs.get(BASELINE) != baseline:
            continue
        if "metrics" in result:
            return trial.number, result
        if "failure" in result:
            ended = trial.number, result
    return ended


def _signed(scored: Scored, task: str) -> float:
    metric = scored.metrics[task]
    return metric.value if metric.higher_is_better else -metric.value


def _error(one: Scored, other: Scored, objective: Objective, task: str) -> float:
    """Standard error of the difference: paired, where the metric is a mean over documents."""
    name = objective.targets[task].metric
    values = [np.array(s.documents[task].values[name], dtype=np.float64) for s in (one, other)]
    known = ~np.isnan(values[0]) & ~np.isnan(values[1])
    metrics = (one.metrics[task], other.metrics[task])
    means = all(is_mean(v[~np.isnan(v)], m) for v, m in zip(values, metrics, strict=True))
    if means and known.sum() > 1:
        differences = (values[0] - values[1])[known]
        return float(differences.std(ddof=1) / sqrt(len(differences)))
    return sqrt(sum((metric.standard_error or 0.0) ** 2 for metric in metrics))

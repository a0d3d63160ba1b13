"""Which parameters tell good trials from others: Optuna's PED-ANOVA, on trials scored in full."""

import warnings
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from evomerge.dashboard.snapshot import Snapshot

MOST = 400
"""Trials that are looked at: the best half of these, and as many others, evenly chosen."""
LEAST = 20


def importances(snapshot: Snapshot) -> tuple[dict[str, float], int]:
    """(parameter -> its share, trials looked at); nothing where too few trials tell.

    PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255) compares where the best tenth of the trials
    lies with where all lie.
    """
    scored = [
        record
        for record in snapshot.report.records
        if record.value is not None and record.baseline is None
    ]
    scored.sort(key=lambda record: -(record.value or 0.0))
    if len(scored) > MOST:
        rest = np.linspace(MOST // 2, len(scored) - 1, MOST - MOST // 2).astype(int)
        scored = [*scored[: MOST // 2], *(scored[place] for place in rest)]
    parameters = snapshot.index.parameters([record.number for record in scored])
    common = set.intersection(*map(set, parameters.values())) if parameters else set()
    if len(parameters) < LEAST or not common:
        return {}, len(parameters)
    names = sorted(common)
    kinds = {name: _distribution([own[name] for own in parameters.values()]) for name in names}
    study = optuna.create_study(study_name="importance", direction="maximize")
    study.add_trials(
        [
            create_trial(
                value=record.value,
                params={name: parameters[record.number][name] for name in names},
                distributions=kinds,
            )
            for record in scored
            if record.number in parameters
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental, says Optuna
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return dict(found), len(parameters)


def _distribution(values: list[Any]) -> BaseDistribution:
    """The range that the trials cover."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = float(min(values)), float(max(values))
        return FloatDistribution(low, high if high > low else low + 1e-9)
    return CategoricalDistribution(list(dict.fromkeys(values)))

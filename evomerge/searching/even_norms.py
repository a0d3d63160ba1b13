"""Starts from what the models themselves tell: task arithmetic with even norms.

Where the task vector of one source is longer than is usual for its place, as after damage by
quantisation or a fine-tune that went astray, its weight is made smaller in proportion: a source's
weight in a cell is scale · min(1, m / ‖δ‖) with m the median of ‖δ‖ over the sources there.
"""

import logging
from collections.abc import Callable, Mapping
from statistics import median

import optuna
from optuna.distributions import FloatDistribution

from evomerge.searching.baselines import whole
from evomerge.searching.groups import Cell
from evomerge.searching.record import IN_SPACE, RECIPE, START
from evomerge.searching.space import NotInSpace, Parameters, SearchSpace

log = logging.getLogger(__name__)

SCALES = (0.3, 0.5)
Norms = Mapping[Cell, Mapping[str, float]]
"""Cell -> source -> ‖δ‖."""


def even_norms(space: SearchSpace, norms: Norms, scale: float) -> Parameters:
    """The start's parameters, inside the ranges; NotInSpace where the space has no weights."""
    sources = tuple(space.template.sources)
    plain = whole(space.template, "task_arithmetic", sources, weight=dict.fromkeys(sources, scale))
    parameters = space.encode(plain)
    distributions = space.distributions()
    for cell, own in norms.items():
        usual = median(own.values())
        for source, norm in own.items():
            kind = distributions.get(name := f"{cell.label}/weight/{source}")
            if isinstance(kind, FloatDistribution) and norm > usual:
                parameters[name] = max(kind.low, round(scale * usual / norm, 4))
    return parameters


def enqueue_starts(
    study: optuna.Study, space: SearchSpace, norms: Callable[[tuple[Cell, ...]], Norms]
) -> None:
    """Makes sure that every start stands in the study once; the norms are asked for only then.

    A space in which task arithmetic cannot be written gets none; the log says so.
    """
    names = {f"even norms {scale:g}": scale for scale in SCALES}
    known = {trial.user_attrs.get(START) for trial in study.get_trials(deepcopy=False)}
    missing = [name for name in names if name not in known]
    if not missing or len(space.template.sources) < 3:
        return
    cells = tuple(dict.fromkeys(cell for group in space.groups for cell, _ in group.cells))
    try:
        even_norms(space, {}, SCALES[0])
        found = norms(cells)
        for name in missing:
            parameters = even_norms(space, found, names[name])
            marks = {RECIPE: space.recipe(parameters).to_json(), IN_SPACE: True, START: name}
            study.enqueue_trial(parameters, user_attrs=marks)
    except NotInSpace as reason:
        log.info("no start with even norms: %s", reason)

"""What dead workers left in a study: trials that are taken up again, told their end, or failed."""

from collections.abc import Callable
from contextlib import suppress

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from evomerge.searching.record import (
    BASELINE,
    DEATHS,
    GUIDE,
    IN_SPACE,
    RECIPE,
    RESULT,
    RETRY_OF,
    START,
)
from evomerge.searching.study import CLAIMED, is_untold

MOST_DEATHS = 3
"""Of workers on one candidate, after which it fails."""


def drop_claims(study: optuna.Study) -> None:
    """At a start: whoever died before is not to blame."""
    for key, value in study.user_attrs.items():
        if key.startswith(f"{CLAIMED}:") and value is not None:
            study.set_user_attr(key, None)


def take_up_interrupted(
    study: optuna.Study, alive: Callable[[FrozenTrial], bool], *, all_died: bool = False
) -> int:
    """Ends trials that a dead worker left running, and puts each back into the queue.

    A trial whose scores, or end, were recorded before the death is told them instead. One on which
    three workers died fails.

    alive: whether the worker of a running trial lives.
    all_died: the search begins, so that no candidate is to blame. Returns how many were put back.
    """
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    count = 0
    for trial in trials:
        if trial.state != TrialState.RUNNING or is_untold(trial):
            continue  # an untold one's value waits for the scores of base and sources
        if alive(trial):
            continue
        with suppress(UpdateFinishedTrialError, ValueError):  # somebody else was faster
            if not _told(study, trial):
                fresh = trial.number not in retried
                count += _interrupted(study, trial, blamed=not all_died, put_back=fresh)
    return count


def _told(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Whether its end was recorded; it is told now."""
    result = trial.user_attrs.get(RESULT, {})
    if "value" in result:
        study.tell(trial.number, result.get("values", result["value"]))
    elif "estimate" in result:
        study.tell(trial.number, state=TrialState.PRUNED)
    elif "failure" in result:
        study.tell(trial.number, state=TrialState.FAIL)
    else:
        return False
    return True


def _interrupted(study: optuna.Study, trial: FrozenTrial, *, blamed: bool, put_back: bool) -> bool:
    """Whether it was put back."""
    deaths = trial.user_attrs.get(DEATHS, 0) + blamed
    if deaths >= MOST_DEATHS:
        fail(study, trial, f"the worker died {deaths} times while it was on this candidate")
        return False
    if put_back := put_back and RECIPE in trial.user_attrs:
        names = (BASELINE, START, RECIPE, GUIDE)
        kept = {name: trial.user_attrs[name] for name in names if name in trial.user_attrs}
        marks = {IN_SPACE: bool(trial.params), RETRY_OF: trial.number, DEATHS: deaths}
        study.enqueue_trial(trial.params, user_attrs={**kept, **marks})
    study.tell(trial.number, state=TrialState.FAIL)
    return put_back


def give_back(study: optuna.Study, number: int) -> None:
    """Puts a trial of this worker, which cannot go on with it, back into the queue."""
    trial = study.get_trials(deepcopy=False)[number]
    with suppress(UpdateFinishedTrialError):
        _interrupted(study, trial, blamed=False, put_back=True)


def fail(study: optuna.Study, trial: FrozenTrial, reason: str) -> None:
    """Ends another worker's trial; nothing where it has ended meanwhile."""
    with suppress(UpdateFinishedTrialError):
        result = {"failure": reason, "seconds": {}}
        study._storage.set_trial_user_attr(trial._trial_id, RESULT, result)
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

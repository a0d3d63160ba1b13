"""The study: made, continued or refused; its baselines; which trials it has."""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from evomerge.errors import UserError
from evomerge.recipe import Recipe
from evomerge.searching.constraints import Constraint
from evomerge.searching.objective import Goal, Objective, Target
from evomerge.searching.record import (
    BASELINE,
    CARRIED,
    FINGERPRINT,
    GUIDE,
    IN_SPACE,
    RECIPE,
    RESULT,
    read_trial,
)
from evomerge.searching.references import REFERENCES, with_references
from evomerge.searching.run_folder import STUDY, RunFolder
from evomerge.searching.space import NotInSpace, Space
from evomerge.searching.trial_files import copy_trial

IDENTITY = "identity"
"""Study attribute: the facts that make scores comparable; a resume must bring equal ones."""
HISTORY = "history"
"""Study attribute: one entry per start: time, host, versions, sampler and why, git revision."""

TASKS = "tasks"
"""Study attribute: task -> how it is asked: folder, num_fewshot, chat_template, dtype, ..."""

PUBLISHED = "published"
"""Study attribute: task -> the public test set that its documents are from, in words."""

BATCH_TOKENS = "batch_tokens"
"""Study attribute: tokens in a forward pass, found at the first start or configured."""

CONFIG = "config"
"""Study attribute: the configuration's text and name, and the folder that its paths start from."""

CLAIMED = "claimed"
"""Prefix of study attributes: `claimed:holdout:12` has the worker that scores trial 12 there, and
how many died of it."""

OBJECTIVE = "objective"
"""Study attribute: task -> its own metric and weight."""

GOAL = "goal"
"""Study attribute: what trials climb: metric, smooth or both; why; leaders; normalisation."""

CONSTRAINTS = "constraints"
"""Study attribute: the limits, as configured."""


_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def find_study(storage: BaseStorage) -> optuna.Study | None:
    """The study of a run, if it was begun."""
    if STUDY not in optuna.get_all_study_names(storage):
        return None
    return optuna.load_study(study_name=STUDY, storage=storage)


def write_goal(study: optuna.Study, goal: Goal) -> None:
    """Keeps the goal where `read_goal` finds it."""
    targets = goal.points.targets.items()
    study.set_user_attr(OBJECTIVE, {task: asdict(target) for task, target in targets})
    study.set_user_attr(GOAL, goal.facts())
    study.set_user_attr(CONSTRAINTS, [asdict(constraint) for constraint in goal.constraints])


def read_goal(attributes: Mapping[str, Any]) -> Goal:
    """The goal of a run, from its study's attributes; UserError where it did not begin."""
    if OBJECTIVE not in attributes:
        raise UserError("the run has not begun; let it finish a trial")
    targets = {task: Target(**row) for task, row in attributes[OBJECTIVE].items()}
    facts = attributes.get(GOAL, {"kind": "metric"})
    facts = {**facts, "parts": {n: tuple(own) for n, own in facts.get("parts", {}).items()}}
    constraints = tuple(Constraint(**row) for row in attributes.get(CONSTRAINTS, ()))
    goal = Goal(points=Objective(targets=targets), constraints=constraints, **facts)
    return with_references(goal, attributes.get(REFERENCES))


def published_sentence(published: Mapping[str, str]) -> str:
    """Which tasks are public test sets, and what that means; of at least one."""
    names = ", ".join(f"{task} ({words})" for task, words in published.items())
    return (
        f"searched on public test sets: {names}; on these, the winner's scores do not compare "
        "with those of models that were not chosen by them"
    )


def note(study: optuna.Study, name: str, text: str) -> None:
    """Adds a fact to the history's last entry."""
    *before, last = study.user_attrs[HISTORY]
    study.set_user_attr(HISTORY, [*before, {**last, name: text}])


def open_study(
    storage: BaseStorage, identity: Mapping[str, Any], objectives: Collection[str] = ()
) -> optuna.Study:
    """Makes the study, or goes on with it.

    objectives: names, where there are several. UserError that shows the difference where the study
    was begun with another identity.
    """
    study = find_study(storage)
    if study is None:
        directions = [StudyDirection.MAXIMIZE] * max(1, len(objectives))
        study = optuna.create_study(
            storage=storage, study_name=STUDY, directions=directions, load_if_exists=True
        )
        if objectives:
            with warnings.catch_warnings():  # experimental since Optuna 3.2
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names(list(objectives))
    known = study.user_attrs.get(IDENTITY)
    if known is None:
        study.set_user_attr(IDENTITY, dict(identity))
    elif changes := differences(known, identity):
        raise UserError(
            "this run was begun with another configuration:\n"
            + "\n".join(f"  {change}" for change in changes)
            + "\nGo on with the old one, give another `output`, or start a new run that takes over "
            "what is still valid with --fork"
        )
    return study


def differences(known: Any, given: Any, path: str = "") -> list[str]:
    """`path: old -> new` for every leaf that differs between two nested mappings."""
    if isinstance(known, Mapping) and isinstance(given, Mapping):
        return [
            line
            for key in dict.fromkeys((*known, *given))
            for line in differences(
                known.get(key), given.get(key), f"{path}.{key}" if path else str(key)
            )
        ]
    plain = [list(value) if isinstance(value, tuple) else value for value in (known, given)]
    return [] if plain[0] == plain[1] else [f"{path}: {plain[0]!r} -> {plain[1]!r}"]


def enqueue_baselines(study: optuna.Study, space: Space, baselines: Mapping[str, Recipe]) -> None:
    """Makes sure that every baseline stands in the study once; safe to repeat after a kill.

    One that can be written in the space's parameters carries them, so that samplers learn of it.
    """
    known = {trial.user_attrs.get(BASELINE) for trial in study.get_trials(deepcopy=False)}
    for name, recipe in baselines.items():
        if name in known:
            continue
        try:
            parameters = space.encode(recipe)
            recipe = space.recipe(parameters)
        except NotInSpace:
            parameters = {}
        attributes = {
            BASELINE: name,
            RECIPE: recipe.to_json(),
            IN_SPACE: bool(parameters),
        }
        study.enqueue_trial(parameters, user_attrs=attributes)


def values_of_baselines(study: optuna.Study) -> dict[str, float | None] | None:
    """Name -> value of every baseline, or its estimate, None where it failed; None while one has
    not ended."""
    values: dict[str, float | None] = {}
    for trial in study.get_trials(deepcopy=False):
        name = trial.user_attrs.get(BASELINE)
        if name is None:
            continue
        if not trial.state.is_finished():
            return None
        record = read_trial(trial)
        value = record.estimate if record.value is None else record.value
        values[name] = values.get(name) if value is None else value
    return values


def carry_over(
    old: optuna.Study,
    old_folder: RunFolder,
    new: optuna.Study,
    folder: RunFolder,
    space: Space,
) -> int:
    """Takes the scored trials of one run, pruned ones too, into another of comparable scores.

    A recipe that the new space cannot express comes along without parameters. Returns how many.
    """
    if REFERENCES in old.user_attrs:
        new.set_user_attr(REFERENCES, old.user_attrs[REFERENCES])
    count = 0
    for trial in old.get_trials(deepcopy=False, states=_ENDED):
        recipe = Recipe.from_json(trial.user_attrs[RECIPE])
        try:
            parameters = space.encode(recipe)
        except NotInSpace:
            parameters = {}
        distributions = space.distributions() if parameters else {}
        number = len(new.get_trials(deepcopy=False))
        # The way along the gradient was that of the other run.
        attributes = {name: v for name, v in trial.user_attrs.items() if name != GUIDE}
        copy_trial(old_folder, trial.number, folder, number)
        new.add_trial(
            optuna.trial.create_trial(
                state=trial.state,
                values=trial.values,
                intermediate_values=trial.intermediate_values,
                params=parameters,
                distributions=distributions,
                constraints=trial.constraints or None,
                user_attrs={**attributes, CARRIED: [str(old_folder.path), trial.number]},
            )
        )
        count += 1
    return count


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials with scores, pruned or not, told or not, and candidates that failed for a reason of
    their own."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in _ENDED
        or is_untold(trial)
        or (trial.state == TrialState.FAIL and "failure" in trial.user_attrs.get(RESULT, {}))
    ]


def scored_before(study: optuna.Study, fingerprint: str) -> FrozenTrial | None:
    """A finished trial of the very same weights; rather a complete one than a pruned one."""
    twins = [
        trial
        for trial in study.get_trials(deepcopy=False, states=_ENDED)
        if trial.user_attrs.get(FINGERPRINT) == fingerprint
    ]
    complete = (trial for trial in twins if trial.state == TrialState.COMPLETE)
    return next(complete, next(iter(twins), None))


def tell(study: optuna.Study, trial: optuna.Trial, result: Mapping[str, Any]) -> None:
    """Ends a trial that was scored in full. Told last: a kill before loses nothing."""
    set_constraints(trial, result.get("violations", {}))
    trial.set_user_attr(RESULT, dict(result))
    study.tell(trial, result.get("values", result["value"]), skip_if_finished=True)


def set_constraints(trial: optuna.Trial, broken: Mapping[str, float]) -> None:
    """Tells samplers by how much the trial breaks each limit, as far as they are not told yet."""
    for name in broken.keys() - trial.constraints.keys():
        trial.set_constraint(name, broken[name])


def is_untold(trial: FrozenTrial) -> bool:
    """Whether it was scored in full, and its value waits for the scores of base and sources."""
    result = trial.user_attrs.get(RESULT, {})
    ended = result.keys() & {"value", "estimate", "failure"}
    return trial.state == TrialState.RUNNING and "metrics" in result and not ended


def untold(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that `is_untold` says."""
    return list(filter(is_untold, study.get_trials(deepcopy=False)))


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether it keeps all limits."""
    return all(broken <= 0 for broken in trial.constraints.values())


def best_complete(study: optuna.Study) -> FrozenTrial | None:
    """The trial of the highest value among those scored in full that keep all limits; the first of
    equals."""
    best = None
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        # Of thousands, only those are looked at closer that would be the best.
        if (best is None or trial.values[0] > best.values[0]) and is_feasible(trial):
            best = trial
    return best

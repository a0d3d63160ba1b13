"""Steps along the gradient of the smooth objective, before evolution takes over.

The slope of the mean log-probability of the references in every number of a recipe follows from one
backward pass, whatever their number. A step of Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm
1) moves all numbers of the space that merged tensors are differentiable in; methods, and what a
method is not differentiable in, stay as they are at the start: the best baseline inside the space.

The search documents are cut into stratified parts, one for a step, each in turn; the last ones are
never shown to the gradient. Every few steps a trial looks at the point: it scores it on all search
documents. Guidance ends where looks do not get better any more, where the unseen documents have
become worse by more than their standard error (the steps then fit the others), or where all steps
are taken. Every step is a trial of the study that keeps its slopes, so that the way is found again
from the trials alone.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal, Protocol

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from evomerge.methods import METHODS
from evomerge.methods.derivative import Slopes, smooth_parameters
from evomerge.recipe import Recipe
from evomerge.scoring.documents import stratified_blocks
from evomerge.scoring.scorecard import SMOOTH, DocumentScores, Metric
from evomerge.scoring.scorer import Documents
from evomerge.searching.objective import Goal
from evomerge.searching.record import (
    BASELINE,
    GUIDE,
    IN_SPACE,
    RECIPE,
    RESULT,
    SLOPES,
    START,
)
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.space import Space

log = logging.getLogger(__name__)

GUIDANCE = "guidance"
"""Study attribute: where guidance began, and how it ended."""

GuideKind = Literal["gradient", "none"]

BACKWARD = 3
"""Scored documents that a document's gradient counts for: a pass, and two for the way back."""

_MOMENTUM, _SCALE = 0.9, 0.999  # of Adam


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """The smooth objective of a candidate on some documents, and how it changes."""

    scores: Mapping[str, DocumentScores]
    slopes: Sequence[Slopes]
    """Of each rule of the recipe."""
    seconds: Mapping[str, float]
    """By phase: merge, model."""

    def metrics(self) -> tuple[Metric, ...]:
        """The smooth metric of each task, on these documents."""
        found = []
        for task, own in self.scores.items():
            values = own.values[SMOOTH]
            error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
            metric = Metric(
                task=task,
                name=SMOOTH,
                value=fmean(values),
                standard_error=error,
                documents=len(values),
                higher_is_better=True,
            )
            found.append(metric)
        return tuple(found)


class Differentiate(Protocol):
    """Makes a recipe's weights and differentiates their smooth objective."""

    def __call__(
        self, recipe: Recipe, documents: Documents, weights: Mapping[str, float], /
    ) -> Gradient:
        """The slopes of Σ weight · mean smooth score over the task's documents; CandidateError
        where there are none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How guidance goes."""

    rate: float = 0.08
    """Of a step, as a share of a parameter's range."""
    steps: int = 30
    """At most."""
    documents: int = 64
    """In a part, about; a step sees one part, each in turn."""
    unseen: float = 0.2
    """Share of the documents that the gradient never sees."""
    every: int = 5
    """Steps between looks at all documents."""
    patience: int = 3
    """Looks in a row without gain, or worse on the unseen documents, after which guidance ends."""

    def parts(self, documents: Documents) -> tuple[tuple[Documents, ...], Documents]:
        """(for the steps, in turn; never seen by them)."""
        total = sum(map(len, documents.values()))
        least = math.ceil(1 / self.unseen)
        parts = stratified_blocks(documents, max(least, round(total / self.documents)))
        kept = max(1, round(self.unseen * len(parts)))
        unseen = {
            task: tuple(number for part in parts[-kept:] for number in part.get(task, ()))
            for task in documents
        }
        return parts[:-kept], unseen


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a guided trial does."""

    number: int
    """Steps taken before it."""
    documents: Documents | None
    """Those of the gradient; None: it looks at all of them."""


@dataclass(slots=True, kw_only=True)
class Guide:
    """Puts guided trials into a study, one at a time, until guidance has ended."""

    study: optuna.Study
    space: Space
    goal: Goal
    folder: RunFolder
    documents: Documents
    """All search documents of the tasks that count."""
    pace: Pace = Pace()

    def queue(self) -> None:
        """Queues the next guided trial; nothing while others wait, or after the end."""
        facts = self.study.user_attrs.get(GUIDANCE, {})
        if "end" in facts:
            return
        trials = self.study.get_trials(deepcopy=False)
        if any(_under_way(trial) for trial in trials):
            return
        start = self._start(facts, trials)
        if start is None:
            return
        guided = sorted(
            (t for t in trials if GUIDE in t.user_attrs and t.state.is_finished()),
            key=lambda trial: trial.number,
        )
        steps = [t for t in guided if SLOPES in t.user_attrs.get(RESULT, {})]
        looks = [t for t in guided if t.user_attrs[GUIDE]["look"] and _scored(t)]
        if (end := self._ended(start, guided, steps, looks)) is not None:
            self._end(end)
            return
        place = self._place(start, [t.user_attrs[RESULT][SLOPES] for t in steps])
        due = len(steps) % self.pace.every == 0 or len(steps) == self.pace.steps
        seen = {t.user_attrs[GUIDE]["step"] for t in looks}
        look = bool(steps) and due and len(steps) not in seen
        self.study.enqueue_trial(
            place,
            user_attrs={
                RECIPE: self.space.recipe(place).to_json(),
                IN_SPACE: True,
                GUIDE: {"step": len(steps), "look": look},
            },
        )

    def step(self, trial: optuna.Trial) -> Step | None:
        """What the trial does, if it is a guided one."""
        facts = trial.user_attrs.get(GUIDE)
        if facts is None:
            return None
        parts, _ = self.pace.parts(self.documents)
        documents = None if facts["look"] else parts[facts["step"] % len(parts)]
        return Step(number=facts["step"], documents=documents)

    def _start(self, facts: Mapping[str, Any], trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """The best baseline or start in the space that has something to move; ends guidance if
        there is none."""
        for trial in trials:
            if trial.number == facts.get("start"):
                return trial
        inside = [t for t in trials if _plain(t) is not None and t.params and _eligible(t)]
        inside.sort(key=lambda trial: -trial.values[0])
        for trial in inside:
            recipe = self.space.recipe(trial.params)
            if self.space.slopes(recipe, _still(recipe)):
                self.study.set_user_attr(GUIDANCE, {"start": trial.number})
                log.info("guidance starts at %s", _plain(trial))
                return trial
        if not trials:
            return None
        self._end(
            "no baseline lies in the space and keeps all limits, whose method is differentiable in "
            "its numbers"
        )
        return None

    def _ended(
        self,
        start: FrozenTrial,
        guided: Sequence[FrozenTrial],
        steps: Sequence[FrozenTrial],
        looks: Sequence[FrozenTrial],
    ) -> str | None:
        """Why guidance ends here; None where it goes on."""
        failed = [t for t in guided if t.user_attrs.get(RESULT, {}).get("failure")]
        if failed:
            return f"trial {failed[0].number} failed: {failed[0].user_attrs[RESULT]['failure']}"
        last = looks[-self.pace.patience :]
        if len(last) == self.pace.patience:
            best = max((start, *looks), key=lambda trial: trial.values[0])
            if best not in last:
                return f"no gain since trial {best.number}"
            best = max((start, *looks[: -len(last)]), key=lambda trial: trial.values[0])
            if all(self._worse_on_unseen(trial, best) for trial in last):
                return f"worse than trial {best.number} on the documents that no step has seen"
        if len(steps) >= self.pace.steps and looks[-1].user_attrs[GUIDE]["step"] == len(steps):
            return f"{len(steps)} steps are done"
        return None

    def _worse_on_unseen(self, trial: FrozenTrial, best: FrozenTrial) -> bool:
        """Whether it is worse by more than a standard error of the paired differences."""
        _, unseen = self.pace.parts(self.documents)
        ours, theirs = (self.folder.scores("search", each.number) for each in (trial, best))
        value = variance = 0.0
        for task, weight in self.goal.climbed.weights().items():
            places = np.isin(ours[task].documents, unseen[task])
            differences = np.subtract(ours[task].values[SMOOTH], theirs[task].values[SMOOTH])[
                places
            ]
            differences = differences[~np.isnan(differences)]
            if len(differences) > 1:
                value += weight * differences.mean()
                variance += weight**2 * differences.var(ddof=1) / len(differences)
        return bool(value + math.sqrt(variance) < 0)

    def _place(self, start: FrozenTrial, slopes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Where so many steps of Adam lead, in the space's box."""
        place = dict(start.params)
        boxes = {n: d for n, d in start.distributions.items() if isinstance(d, FloatDistribution)}
        first = dict.fromkeys(slopes[0] if slopes else (), 0.0)
        second = dict(first)
        for step, each in enumerate(slopes, start=1):
            for name, slope in each.items():
                box = boxes[name]
                scaled = slope * (box.high - box.low)
                first[name] = _MOMENTUM * first[name] + (1 - _MOMENTUM) * scaled
                second[name] = _SCALE * second[name] + (1 - _SCALE) * scaled**2
                mean = first[name] / (1 - _MOMENTUM**step)
                size = math.sqrt(second[name] / (1 - _SCALE**step))
                move = self.pace.rate * mean / size if size > 0 else 0.0
                place[name] = min(max(place[name] + move * (box.high - box.low), box.low), box.high)
        return place

    def _end(self, reason: str) -> None:
        log.info("guidance ends: %s", reason)
        facts = self.study.user_attrs.get(GUIDANCE, {})
        self.study.set_user_attr(GUIDANCE, {**facts, "end": reason})


def _still(recipe: Recipe) -> list[Slopes]:
    """Slopes of 0 in all that each rule is differentiable in."""
    return [
        {
            name: (0.0,)
            * (len(rule.sources) if METHODS[rule.method].parameter(name).per_source else 1)
            for name in smooth_parameters(METHODS[rule.method])
        }
        for rule in recipe.rules
    ]


def _plain(trial: FrozenTrial) -> str | None:
    """Name of the baseline, or of the start with even norms, that the trial is."""
    name: str | None = trial.user_attrs.get(BASELINE, trial.user_attrs.get(START))
    return name


def _under_way(trial: FrozenTrial) -> bool:
    """Whether it has to end before the next guided trial: it waits, or another worker is at it."""
    due = GUIDE in trial.user_attrs or _plain(trial) is not None
    return trial.state == TrialState.WAITING or (due and trial.state == TrialState.RUNNING)


def _eligible(trial: FrozenTrial) -> bool:
    return _scored(trial) and all(broken <= 0 for broken in trial.constraints.values())


def _scored(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE

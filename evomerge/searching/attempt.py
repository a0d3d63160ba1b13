"""One trial: made, scored or differentiated, and recorded; an error is recorded as its end."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import optuna
from optuna.trial import TrialState

from evomerge.recipe import Recipe
from evomerge.scoring.answers import answers_to_json
from evomerge.scoring.scorecard import Metric, Scorecard, count_documents, joined, to_json
from evomerge.scoring.scorer import KINDS, Documents, GoOn, Kind
from evomerge.searching.constraints import check_measured, violations
from evomerge.searching.failure import reason_of
from evomerge.searching.guidance import BACKWARD, Differentiate, Guide, Step
from evomerge.searching.objective import Goal
from evomerge.searching.patience import patiently
from evomerge.searching.racing import Incumbent, Race, Racing, Stop, difference
from evomerge.searching.record import FILES, GUIDE, RESULT, SLOPES, read_trial
from evomerge.searching.run_folder import RunFolder, Side
from evomerge.searching.sent_files import packed
from evomerge.searching.space import Space
from evomerge.searching.study import best_complete, scored_before, set_constraints, tell
from evomerge.searching.time_limit import time_limit
from evomerge.searching.trial_files import copy_trial, write_trial

log = logging.getLogger(__name__)

Number = TypeVar("Number", int, float)
Metrics = tuple[Metric, ...]


class Evaluate(Protocol):
    """Makes a recipe's weights and scores them on one side of the split, or on given documents (in
    one block, or in several)."""

    def __call__(
        self,
        recipe: Recipe,
        documents: Documents | Side | Sequence[Documents],
        /,
        *,
        kinds: AbstractSet[Kind] = KINDS,
        go_on: GoOn = lambda scores: True,
    ) -> tuple[Scorecard, Mapping[str, float]]:
        """The scores, and the seconds spent by phase (merge, model, metric).

        go_on is asked after each block of documents.
        """
        ...


@dataclass(slots=True, kw_only=True)
class Attempt:
    """What all trials of one process share."""

    study: optuna.Study
    space: Space
    goal: Goal
    folder: RunFolder
    evaluate: Evaluate
    racing: Racing | None = None
    """None: every trial is scored in full."""
    guide: Guide | None = None
    """Knows which trials are steps along the gradient; None: there are none."""
    differentiate: Differentiate | None = None
    """For these steps."""
    on_refusal: Callable[[str], None] = lambda reason: None
    """Told why no trial can be stopped early from now on."""
    constrained: Documents = field(default_factory=dict)
    """Tasks under constraint -> their search documents."""
    seconds: float | None = None
    """That a trial may take; None: any number."""
    _incumbent: Incumbent | None = None

    def settle(self, goal: Goal) -> None:
        """From now on it is known what values are."""
        self.goal = goal
        if self.racing is not None:
            self.racing.objective = goal.climbed
        if self.guide is not None:
            self.guide.goal = goal

    def run(
        self, trial: optuna.Trial, recipe: Recipe, fingerprint: str, seconds: dict[str, float]
    ) -> None:
        """Gives the trial its end, or its scores where its value waits for others.

        seconds: by phase so far; grows.
        """
        step = self.guide.step(trial) if self.guide is not None else None
        if step is not None and step.documents is not None:
            self._step(trial, recipe, step, seconds)
        elif (twin := scored_before(self.study, fingerprint)) is not None:
            self._copy(trial, twin)
        else:
            self._score(trial, recipe, seconds)

    def tell(self, trial: optuna.Trial, result: Mapping[str, Any], metrics: Metrics) -> None:
        """The value of a trial that was scored in full, and by how much it breaks limits."""
        climbed = self.goal.climbed.found(metrics)
        broken = violations(self.goal.constraints, metrics)
        assert climbed is not None
        assert broken is not None
        facts: dict[str, Any] = {"value": self.goal.climbed.value(climbed), "share": 1.0}
        if broken:
            facts["violations"] = broken
        if self.goal.several:
            facts["values"] = self.goal.values(self.goal.climbed, metrics)
        tell(self.study, trial, {**result, **facts})

    def _score(self, trial: optuna.Trial, recipe: Recipe, seconds: dict[str, float]) -> None:
        guided, alone = GUIDE in trial.user_attrs, _is_model(recipe)
        race = None if guided or alone else self._race()
        kinds = KINDS if alone else self.goal.trial_kinds
        try:
            with time_limit(self.seconds):
                scorecard, documents = self._scores(recipe, kinds, race, seconds)
                if not alone and self._is_new_best(scorecard, race):
                    scorecard = self._with_metrics(recipe, "search", scorecard, documents, seconds)
            self.goal.climbed.metrics(scorecard)  # KeyError where one was not scored
        except Exception as error:  # noqa: BLE001 - recorded; it does not end the search
            self._fail(trial, error, seconds)
        else:
            before = time.perf_counter()
            self._keep(trial, scorecard)
            seconds["record"] = time.perf_counter() - before
            result = {
                "metrics": to_json(scorecard.metrics),
                "answers": answers_to_json(scorecard.answers),
                "documents": documents,
                "seconds": seconds,
            }
            if scorecard.remarks:
                result["remarks"] = list(scorecard.remarks)
            if race is not None and race.stop is not None:
                self._prune(trial, race.stop, result, scorecard)
            elif self.goal.settled:
                self.tell(trial, result, scorecard.metrics)
            else:
                trial.set_user_attr(RESULT, {**result, "share": 1.0})

    def _scores(
        self,
        recipe: Recipe,
        kinds: AbstractSet[Kind],
        race: Race | None,
        seconds: dict[str, float],
    ) -> tuple[Scorecard, dict[str, int]]:
        """The scores, and how many documents were scored by kind; `seconds` grows by phase."""
        go_on: GoOn = (lambda scores: True) if race is None else race.go_on
        scorecard, spent = self.evaluate(recipe, "search", kinds=kinds, go_on=go_on)
        _add(seconds, spent)
        documents = count_documents(scorecard, kinds)
        if race is not None and race.stop is not None:
            return scorecard, documents
        if lacking := self._lacking(scorecard):
            scorecard = self._with_metrics(recipe, lacking, scorecard, documents, seconds)
        check_measured(self.goal.constraints, scorecard.metrics)
        return scorecard, documents

    def _lacking(self, scorecard: Scorecard) -> Documents:
        """Tasks under constraint whose metrics what is climbed does not need."""
        known = {(metric.task, metric.name) for metric in scorecard.metrics}
        return {
            constraint.task: self.constrained[constraint.task]
            for constraint in self.goal.constraints
            if (constraint.task, constraint.metric) not in known
        }

    def _with_metrics(
        self,
        recipe: Recipe,
        where: Documents | Side,
        scorecard: Scorecard,
        documents: dict[str, int],
        seconds: dict[str, float],
    ) -> Scorecard:
        """The same with the tasks' own metrics; `documents` and `seconds` grow."""
        more, spent = self.evaluate(recipe, where, kinds=frozenset({"metric"}))
        _add(seconds, spent)
        _add(documents, count_documents(more, ["metric"]))
        return joined(scorecard, more)

    def _is_new_best(self, scorecard: Scorecard, race: Race | None) -> bool:
        """Whether the points, so far unknown, are to be shown as those of the best trial.

        Multiple choice has its own metric from the same passes as the smooth one.
        """
        if self.goal.kind != "both" or self.goal.several or (race and race.stop is not None):
            return False
        if self.goal.points.value_of(scorecard.metrics) is not None:
            return False
        broken = violations(self.goal.constraints, scorecard.metrics) or {}
        if any(amount > 0 for amount in broken.values()):
            return False
        best = best_complete(self.study)
        value = self.goal.climbed.value(self.goal.climbed.metrics(scorecard))
        return best is None or value > best.values[0]

    def _step(
        self, trial: optuna.Trial, recipe: Recipe, step: Step, seconds: dict[str, float]
    ) -> None:
        """Differentiates the smooth objective on some documents, and keeps the slopes."""
        incumbent = self._best()
        assert self.differentiate is not None
        assert step.documents is not None
        assert incumbent is not None  # guidance began at a complete trial
        try:
            with time_limit(self.seconds):
                found = self.differentiate(recipe, step.documents, self.goal.climbed.weights())
        except Exception as error:  # noqa: BLE001 - recorded; it does not end the search
            self._fail(trial, error, seconds)
            return
        self._keep(trial, Scorecard(metrics=(), per_document=found.scores))
        seen = sum(len(own.documents) for own in found.scores.values())
        above = difference(found.scores, incumbent, self.goal.climbed)
        estimate = incumbent.value + (0.0 if above is None else above.value)
        result = {
            "metrics": to_json(found.metrics()),
            "documents": {"smooth": BACKWARD * seen},
            "seconds": {**seconds, **found.seconds},
            "estimate": estimate,
            "share": None,
            "against": incumbent.number,
            "because": f"step {step.number + 1} along the gradient of {seen} documents",
            SLOPES: self.space.slopes(recipe, found.slopes),
        }
        trial.report(estimate, step=seen)
        trial.set_user_attr(RESULT, result)
        self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)

    def _keep(self, trial: optuna.Trial, scorecard: Scorecard) -> None:
        """Writes what was scored per document; before the trial's result."""
        patiently(
            "writing scores",
            lambda: write_trial(self.folder, "search", trial.number, scorecard),
        )
        self._send(trial)

    def _send(self, trial: optuna.Trial) -> None:
        """Along with a study in a database, for workers that do not share the folder."""
        if self.folder.fetch is not None:
            trial.set_user_attr(FILES, packed(self.folder, "search", trial.number))

    def _race(self) -> Race | None:
        """Against the best complete trial; None where there is none, or no early stopping."""
        incumbent = self._best() if self.racing is not None else None
        if self.racing is None or incumbent is None:
            return None
        if (reason := self.racing.refusal(incumbent)) is not None:
            self.racing = None
            self.on_refusal(reason)
            return None
        return self.racing.race(incumbent)

    def _best(self) -> Incumbent | None:
        """The best complete trial with its scores; None where there is none."""
        best = best_complete(self.study)
        if best is None:
            return None
        if self._incumbent is None or self._incumbent.number != best.number:
            metrics = self.goal.climbed.found(read_trial(best).metrics)
            assert metrics is not None  # it has a value
            self._incumbent = Incumbent(
                number=best.number,
                value=best.values[0],
                metrics=metrics,
                scores=self.folder.scores("search", best.number),
            )
        return self._incumbent

    def _prune(
        self, trial: optuna.Trial, stop: Stop, result: Mapping[str, Any], scorecard: Scorecard
    ) -> None:
        """Limits are told by the part of the documents, as far as that has the metrics."""
        facts: dict[str, Any] = {
            "estimate": stop.estimate,
            "share": stop.share,
            "pruned": stop.reason,
            "against": stop.against,
            "because": stop.sentence,
        }
        if broken := violations(self.goal.constraints, scorecard.metrics):
            facts["violations"] = broken
        # Before the result: a trial with a result needs nothing more than to be told.
        trial.report(stop.estimate, step=stop.documents)
        set_constraints(trial, broken or {})
        trial.set_user_attr(RESULT, {**result, **facts})
        self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)

    def _fail(self, trial: optuna.Trial, error: Exception, seconds: Mapping[str, float]) -> None:
        """Records why the candidate could not be made, scored or differentiated."""
        reason = reason_of(error, f"trial {trial.number}")
        trial.set_user_attr(RESULT, {"failure": reason, "seconds": dict(seconds)})
        self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def _copy(self, trial: optuna.Trial, twin: optuna.trial.FrozenTrial) -> None:
        """The same weights were scored before: the scores are taken over, nothing is run."""
        self.folder.scores("search", twin.number)  # fetched, where another machine has them
        patiently(
            "copying scores",
            lambda: copy_trial(self.folder, twin.number, self.folder, trial.number),
        )
        self._send(trial)
        copied: dict[str, Any] = {
            "seconds": {},
            "documents": {},
            "share": None,
            "same_as": twin.number,
        }
        result = {**twin.user_attrs[RESULT], **copied}
        if "estimate" in result:
            trial.report(result["estimate"], step=max(twin.intermediate_values))
            set_constraints(trial, result.get("violations", {}))
            trial.set_user_attr(RESULT, result)
            self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
            return
        tell(self.study, trial, result)


def _add(total: dict[str, Number], more: Mapping[str, Number]) -> None:
    for name, amount in more.items():
        total[name] = total[name] + amount if name in total else amount


def _is_model(recipe: Recipe) -> bool:
    """Whether it is the base or a source as it is: what merges are measured by, so scored in
    full."""
    return all(rule.method == "passthrough" for rule in recipe.rules) and recipe.stack is None

"""The loop: ask for a recipe, make it, score it, record it; nothing ends the night but its end."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeVar

import optuna
from optuna.trial import TrialState

from evomerge.errors import EvomergeError, UserError
from evomerge.recipe import Recipe
from evomerge.scoring.answers import answers_to_json
from evomerge.scoring.scorecard import (
    Metric,
    Scorecard,
    count_documents,
    from_json,
    joined,
    read_documents,
    to_json,
)
from evomerge.scoring.scorer import KINDS, Documents, GoOn, Kind
from evomerge.searching.constraints import check_measured, violations
from evomerge.searching.guidance import BACKWARD, Differentiate, Guide, Step
from evomerge.searching.objective import Goal
from evomerge.searching.racing import Incumbent, Race, Racing, Scores, Stop, difference
from evomerge.searching.record import (
    FINGERPRINT,
    GUIDE,
    IN_SPACE,
    RECIPE,
    RESULT,
    SCORED,
    SLOPES,
    WORKER,
    TrialRecord,
    read_trial,
    read_trials,
    worker_stamp,
)
from evomerge.searching.references import settle
from evomerge.searching.run_folder import RunFolder, Side
from evomerge.searching.space import Space
from evomerge.searching.study import (
    best_complete,
    finished,
    scored_before,
    set_constraints,
    tell,
    untold,
)
from evomerge.searching.trial_files import copy_trial, write_trial

log = logging.getLogger(__name__)

_FAILURES_IN_A_ROW = 10
_REPEATS_IN_A_ROW = 200  # of weights that are known: nothing new is left to propose
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When the search ends: at whichever comes first."""

    trials: int | None = None
    documents: int | None = None
    """Search documents scored for all trials together, each kind counted."""
    deadline: datetime | None = None

    def spent(self, finished_trials: int, documents: int) -> bool:
        """Whether no further trial may start."""
        return (
            (self.trials is not None and finished_trials >= self.trials)
            or (self.documents is not None and documents >= self.documents)
            or (self.deadline is not None and datetime.now() >= self.deadline)
        )

    def facts(self) -> dict[str, Any]:
        """As a study keeps it."""
        deadline = None if self.deadline is None else self.deadline.isoformat(timespec="seconds")
        return {"trials": self.trials, "documents": self.documents, "deadline": deadline}

    def full_trials(self, documents: int) -> int | None:
        """Trials of so many documents each that it allows, time aside; None: any number."""
        limits = [] if self.trials is None else [self.trials]
        if self.documents is not None:
            limits.append(-(-self.documents // documents))
        return min(limits, default=None)


@dataclass(slots=True, kw_only=True)
class Loop:
    """One process's share of a study."""

    study: optuna.Study
    space: Space
    goal: Goal
    folder: RunFolder
    evaluate: Evaluate
    budget: Budget
    racing: Racing | None = None
    """None: every trial is scored in full."""
    guide: Guide | None = None
    """Queues steps along the gradient; None: there are none."""
    differentiate: Differentiate | None = None
    """For the guide."""
    on_trial: Callable[[TrialRecord], None] = lambda record: None
    on_refusal: Callable[[str], None] = lambda reason: None
    """Told why no trial can be stopped early from now on."""
    enough: Callable[[], bool] = lambda: False
    """Asked before every trial: whether the search ends before its budget is spent."""
    sources: tuple[str, ...] = ()
    """Names of the sources, whose scores may decide what values are."""
    constrained: Documents = field(default_factory=dict)
    """Tasks under constraint -> their search documents."""
    stop_asked: bool = False
    _incumbent: Incumbent | None = None

    def stop(self) -> None:
        """Makes the trial under way the last one."""
        self.stop_asked = True

    def run(self) -> None:
        """Trials until the budget is spent or a stop was asked for.

        Also ends where a budget of documents is left, but nothing but repeats is proposed.
        Raises UserError after ten failures in a row: then the mistake is not the candidates'.
        """
        self._settle()
        self._remember()
        done = len(finished(self.study))
        documents = sum(record.scored for record in read_trials(self.study))
        failures = repeats = 0
        while not (self.stop_asked or self.budget.spent(done, documents) or self.enough()):
            record = self._trial()
            done += 1
            documents += record.scored
            failures = failures + 1 if record.state == "failed" else 0
            repeats = 0 if record.scored else repeats + 1
            if record.state != SCORED:
                self.on_trial(record)
            self._settle()
            if self.budget.documents is not None and repeats >= _REPEATS_IN_A_ROW:
                # Repeats cost no documents, so the budget alone would never end the search.
                log.warning("%d proposals in a row were known already: the search ends", repeats)
                return
            if failures >= _FAILURES_IN_A_ROW:
                raise UserError(
                    f"{failures} candidates in a row failed, the last with: {record.failure}. "
                    f"See {self.folder.log}; the same command goes on from here"
                )

    def _remember(self) -> None:
        """Tells the racing how the trials before this process did."""
        for trial in finished(self.study) if self.racing is not None else []:
            record = read_trial(trial)
            metrics = self.goal.climbed.found(record.metrics)
            if self.racing is None or metrics is None or "same_as" in trial.user_attrs[RESULT]:
                continue
            if not record.feasible:
                continue
            path = self.folder.documents("search", record.number)
            self.racing.add(record.number, read_documents(path), metrics)

    def _settle(self) -> None:
        """Once base and sources are scored, tells the trials whose values waited for them."""
        waiting = untold(self.study)
        if not self.goal.settled:
            self.goal = settle(self.study, self.folder, self.goal, self.sources)
        if not self.goal.settled:
            return
        if self.racing is not None:
            self.racing.objective = self.goal.climbed
        if self.guide is not None:
            self.guide.goal = self.goal
        for trial in waiting:
            result = trial.user_attrs[RESULT]
            scores = read_documents(self.folder.documents("search", trial.number))
            # Its parameters stand: what it is made of now draws nothing.
            again = optuna.Trial(self.study, trial._trial_id)
            self._tell(again, result, scores, from_json(result["metrics"]))
            self.on_trial(read_trial(self.study.get_trials(deepcopy=False)[trial.number]))

    def _tell(
        self, trial: optuna.Trial, result: Mapping[str, Any], scores: Scores, metrics: Metrics
    ) -> None:
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
        if self.racing is not None and max(broken.values(), default=0.0) <= 0:
            self.racing.add(trial.number, scores, climbed)

    def _trial(self) -> TrialRecord:
        start = time.perf_counter()
        if self.guide is not None:
            self.guide.queue()
        trial = self.study.ask()
        step = self.guide.step(trial) if self.guide is not None else None
        with self.folder.together():
            recipe = self._recipe(trial)
        fingerprint = recipe.fingerprint()
        seconds = {"propose": time.perf_counter() - start}
        trial.set_user_attr(RECIPE, recipe.to_mapping())
        trial.set_user_attr(FINGERPRINT, fingerprint)
        trial.set_user_attr(WORKER, worker_stamp())
        if step is not None and step.documents is not None:
            self._step(trial, recipe, step, seconds)
        elif (twin := scored_before(self.study, fingerprint)) is not None:
            self._copy(trial, twin)
        else:
            self._score(trial, recipe, seconds)
        return read_trial(self.study.get_trials(deepcopy=False)[trial.number])

    def _recipe(self, trial: optuna.Trial) -> Recipe:
        """The proposal, or what a baseline or an interrupted trial brings with it."""
        given = trial.user_attrs.get(RECIPE)
        if given is None:
            return self.space.propose(trial)
        if trial.user_attrs[IN_SPACE]:
            self.space.propose(trial)
        return Recipe.from_mapping(given)

    def _score(self, trial: optuna.Trial, recipe: Recipe, seconds: dict[str, float]) -> None:
        guided, alone = GUIDE in trial.user_attrs, _is_model(recipe)
        race = None if guided or alone else self._race()
        kinds = KINDS if alone else self.goal.trial_kinds
        try:
            scorecard, documents = self._scores(recipe, kinds, race, seconds)
            if not alone and self._is_new_best(scorecard, race):
                scorecard = self._with_metrics(recipe, "search", scorecard, documents, seconds)
            metrics = self.goal.climbed.metrics(scorecard)
        except Exception as error:  # noqa: BLE001 - recorded; it does not end the search
            self._fail(trial, error, seconds)
        else:
            before = time.perf_counter()
            write_trial(self.folder, "search", trial.number, scorecard)
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
                if self.racing is not None:
                    self.racing.add(trial.number, scorecard.per_document, metrics)
                self._prune(trial, race.stop, result, scorecard)
            elif self.goal.settled:
                self._tell(trial, result, scorecard.per_document, scorecard.metrics)
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
            found = self.differentiate(recipe, step.documents, self.goal.climbed.weights())
        except Exception as error:  # noqa: BLE001 - recorded; it does not end the search
            self._fail(trial, error, seconds)
            return
        write_trial(
            self.folder, "search", trial.number, Scorecard(metrics=(), per_document=found.scores)
        )
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
        self.study.tell(trial, state=TrialState.PRUNED)

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
                scores=read_documents(self.folder.documents("search", best.number)),
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
        self.study.tell(trial, state=TrialState.PRUNED)

    def _fail(self, trial: optuna.Trial, error: Exception, seconds: Mapping[str, float]) -> None:
        """Records why the candidate could not be made, scored or differentiated."""
        reason = str(error)
        if not isinstance(error, EvomergeError):
            log.error("trial %d: scoring or merging raised", trial.number, exc_info=error)
            reason = f"{type(error).__name__}: {error}"
        trial.set_user_attr(RESULT, {"failure": reason, "seconds": dict(seconds)})
        self.study.tell(trial, state=TrialState.FAIL)

    def _copy(self, trial: optuna.Trial, twin: optuna.trial.FrozenTrial) -> None:
        """The same weights were scored before: the scores are taken over, nothing is run."""
        copy_trial(self.folder, twin.number, self.folder, trial.number)
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
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        tell(self.study, trial, result)


def _add(total: dict[str, Number], more: Mapping[str, Number]) -> None:
    for name, amount in more.items():
        total[name] = total[name] + amount if name in total else amount


def _is_model(recipe: Recipe) -> bool:
    """Whether it is the base or a source as it is: what merges are measured by, so scored in
    full."""
    return all(rule.method == "passthrough" for rule in recipe.rules) and recipe.stack is None

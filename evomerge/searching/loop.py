"""The loop: ask for a recipe, make it, score it, record it; nothing ends the night but its end."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState

from evomerge.errors import EvomergeError, UserError
from evomerge.recipe import Recipe
from evomerge.scoring.answers import answers_to_json
from evomerge.scoring.scorecard import (
    Scorecard,
    count_documents,
    joined,
    read_documents,
    to_json,
    write_documents,
)
from evomerge.scoring.scorer import KINDS, Documents, GoOn, Kind
from evomerge.searching.objective import Goal
from evomerge.searching.racing import Incumbent, Race, Racing, Stop
from evomerge.searching.record import (
    BASELINE,
    FINGERPRINT,
    IN_SPACE,
    RECIPE,
    RESULT,
    WORKER,
    TrialRecord,
    read_trial,
    worker_stamp,
)
from evomerge.searching.run_folder import RunFolder, Side
from evomerge.searching.space import Space
from evomerge.searching.study import best_complete, finished, scored_before

log = logging.getLogger(__name__)

_FAILURES_IN_A_ROW = 10


class Evaluate(Protocol):
    """Makes a recipe's weights and scores them on one side of the split, or on given documents."""

    def __call__(
        self,
        recipe: Recipe,
        documents: Documents | Side,
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
    deadline: datetime | None = None

    def spent(self, finished_trials: int) -> bool:
        """Whether no further trial may start."""
        return (self.trials is not None and finished_trials >= self.trials) or (
            self.deadline is not None and datetime.now() >= self.deadline
        )


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
    on_trial: Callable[[TrialRecord], None] = lambda record: None
    on_refusal: Callable[[str], None] = lambda reason: None
    """Told why no trial can be stopped early from now on."""
    stop_asked: bool = False
    _incumbent: Incumbent | None = None

    def stop(self) -> None:
        """Makes the trial under way the last one."""
        self.stop_asked = True

    def run(self) -> None:
        """Trials until the budget is spent or a stop was asked for.

        Raises UserError after ten failures in a row: then the mistake is not the candidates'.
        """
        self._remember()
        done = len(finished(self.study))
        failures = 0
        while not self.stop_asked and not self.budget.spent(done):
            record = self._trial()
            done += 1
            failures = failures + 1 if record.state == "failed" else 0
            self.on_trial(record)
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
            path = self.folder.documents("search", record.number)
            self.racing.add(record.number, read_documents(path), metrics)

    def _trial(self) -> TrialRecord:
        start = time.perf_counter()
        trial = self.study.ask()
        with self.folder.together():
            recipe = self._recipe(trial)
        fingerprint = recipe.fingerprint()
        seconds = {"propose": time.perf_counter() - start}
        trial.set_user_attr(RECIPE, recipe.to_mapping())
        trial.set_user_attr(FINGERPRINT, fingerprint)
        trial.set_user_attr(WORKER, worker_stamp())
        if (twin := scored_before(self.study, fingerprint)) is not None:
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
        baseline = BASELINE in trial.user_attrs
        race = None if baseline else self._race()
        try:
            scorecard, documents = self._scores(recipe, baseline, race, seconds)
            metrics = self.goal.climbed.metrics(scorecard)
        except EvomergeError as error:
            self._fail(trial, str(error), seconds)
        except Exception as error:
            log.exception("trial %d: scoring or merging raised", trial.number)
            self._fail(trial, f"{type(error).__name__}: {error}", seconds)
        else:
            before = time.perf_counter()
            path = self.folder.documents("search", trial.number)
            write_documents(scorecard.per_document, path)
            if self.racing is not None:
                self.racing.add(trial.number, scorecard.per_document, metrics)
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
                self._prune(trial, race.stop, result)
            else:
                value = self.goal.climbed.value(metrics)
                trial.set_user_attr(RESULT, {**result, "value": value, "share": 1.0})
                self.study.tell(trial, value)

    def _scores(
        self, recipe: Recipe, baseline: bool, race: Race | None, seconds: dict[str, float]
    ) -> tuple[Scorecard, dict[str, int]]:
        """The scores, and how many documents were scored by kind; `seconds` grows by phase."""
        kinds = KINDS if baseline else self.goal.trial_kinds
        go_on: GoOn = (lambda scores: True) if race is None else race.go_on
        scorecard, spent = self.evaluate(recipe, "search", kinds=kinds, go_on=go_on)
        documents = count_documents(scorecard.per_document, kinds)
        if self._is_new_best(scorecard, baseline, race):
            more, further = self.evaluate(recipe, "search", kinds=frozenset({"metric"}))
            scorecard = joined(scorecard, more)
            documents |= count_documents(more.per_document, ["metric"])
            spent = {k: spent.get(k, 0.0) + further.get(k, 0.0) for k in (*spent, *further)}
        seconds |= spent
        return scorecard, documents

    def _is_new_best(self, scorecard: Scorecard, baseline: bool, race: Race | None) -> bool:
        """Whether the points, so far unknown, are to be shown as those of the best trial.

        Multiple choice has its own metric from the same passes as the smooth one.
        """
        if self.goal.kind != "both" or baseline or (race is not None and race.stop is not None):
            return False
        if self.goal.points.value_of(scorecard.metrics) is not None:
            return False
        best = best_complete(self.study)
        value = self.goal.climbed.value(self.goal.climbed.metrics(scorecard))
        return best is None or value > best.values[0]

    def _race(self) -> Race | None:
        """Against the best complete trial; None where there is none, or no early stopping."""
        best = best_complete(self.study)
        if self.racing is None or best is None:
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
            if (reason := self.racing.refusal(self._incumbent)) is not None:
                self.racing = None
                self.on_refusal(reason)
                return None
        return self.racing.race(self._incumbent)

    def _prune(self, trial: optuna.Trial, stop: Stop, result: Mapping[str, Any]) -> None:
        facts = {
            "estimate": stop.estimate,
            "share": stop.share,
            "pruned": stop.reason,
            "against": stop.against,
            "because": stop.sentence,
        }
        # Before the result: a trial with a result needs nothing more than to be told.
        trial.report(stop.estimate, step=stop.documents)
        trial.set_user_attr(RESULT, {**result, **facts})
        self.study.tell(trial, state=TrialState.PRUNED)

    def _fail(self, trial: optuna.Trial, reason: str, seconds: Mapping[str, float]) -> None:
        trial.set_user_attr(RESULT, {"failure": reason, "seconds": dict(seconds)})
        self.study.tell(trial, state=TrialState.FAIL)

    def _copy(self, trial: optuna.Trial, twin: optuna.trial.FrozenTrial) -> None:
        """The same weights were scored before: the scores are taken over, nothing is run."""
        folder = self.folder
        shutil.copyfile(
            folder.documents("search", twin.number), folder.documents("search", trial.number)
        )
        copied: dict[str, Any] = {
            "seconds": {},
            "documents": {},
            "share": None,
            "same_as": twin.number,
        }
        result = {**twin.user_attrs[RESULT], **copied}
        if "estimate" in result:
            trial.report(result["estimate"], step=max(twin.intermediate_values))
            trial.set_user_attr(RESULT, result)
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        trial.set_user_attr(RESULT, result)
        self.study.tell(trial, result["value"])

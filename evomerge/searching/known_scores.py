"""Scores of another run that are still valid: found again instead of computed.

What a document of a task scores depends on the weights, on how the task is asked and on how scores
are computed, not on the other tasks or trials of a run. So scores are known where the weights are
equal (`weights_key`), the task is asked alike of the same documents, and a side of the split holds
the same of them, all of which were scored.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evomerge.errors import UserError
from evomerge.recipe import Recipe
from evomerge.scoring.answers import AnswerHealth
from evomerge.scoring.documents import Split
from evomerge.scoring.scorecard import (
    DocumentScores,
    Metric,
    Scorecard,
    from_json,
    joined,
    read_answers,
)
from evomerge.scoring.scorer import KINDS, Documents, GoOn, Kind
from evomerge.searching.attempt import Evaluate
from evomerge.searching.equal_weights import weights_key
from evomerge.searching.finalists import holdout_answers, holdout_metrics
from evomerge.searching.record import TrialRecord, read_trials
from evomerge.searching.run_folder import RunFolder, Side
from evomerge.searching.study import IDENTITY, differences, find_study

log = logging.getLogger(__name__)

_WAYS = ("dtype", "vocabulary", "batch_tokens", "generation")
"""Facts of a run's identity without which no score of it is valid in another."""
_WHAT_COUNTS = ("weight", "limit", "metric", "filter")
"""Keys of a task that change what is made of its documents' scores, not the scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of equal weights on one side of the split."""

    origin: str
    """The run that scored them."""
    metrics: tuple[Metric, ...]
    per_document: Mapping[str, DocumentScores]
    answers: Mapping[str, AnswerHealth]
    answered: Path
    """The file of what was answered, which is read where it is needed."""

    def scorecard(self, tasks: AbstractSet[str]) -> Scorecard:
        """Of these tasks alone."""
        try:
            answered = read_answers(self.answered)
        except UserError as error:  # the scores stand without them
            log.warning("without answers: %s", error)
            answered = {}
        return Scorecard(
            metrics=tuple(metric for metric in self.metrics if metric.task in tasks),
            per_document={t: own for t, own in self.per_document.items() if t in tasks},
            answers={t: own for t, own in self.answers.items() if t in tasks},
            answered={t: own for t, own in answered.items() if t in tasks},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownScores:
    """Of all the runs that a search goes on from."""

    found: dict[tuple[str, Side], Known] = field(default_factory=dict)
    """(weights_key, side) -> what is known; of the first run that knows it."""

    def add(
        self,
        folder: RunFolder,
        identity: Mapping[str, Any],
        splits: Mapping[str, Split],
        splits_before: Mapping[str, Split],
    ) -> list[str]:
        """Takes up what is valid of a run; returns, in words, what is not, and why.

        identity and splits: those of the search that goes on. splits_before: those of the run,
        of the tasks whose documents are the same.
        """
        study = find_study(folder.storage_of_run(None))
        if study is None:
            return [f"{folder.path} holds no study"]
        attributes = study.user_attrs
        before = attributes.get(IDENTITY, {})
        if changes := _changes(before, identity, _WAYS):
            return [f"no score of {folder.path} is valid here: {'; '.join(changes)}"]
        refused = {task: _reason(task, before, identity) for task in splits}
        for task, split in splits_before.items():
            if refused[task] is None and split != splits[task]:
                refused[task] = "has other documents to search on or to hold out"
        tasks = {task: split for task, split in splits.items() if refused[task] is None}
        answers = holdout_answers(attributes)
        held = holdout_metrics(attributes)
        for record in read_trials(study):
            rows = from_json(held.get(record.number, []))
            if record.value is None and not rows:
                continue
            key = weights_key(record.recipe)
            if record.value is not None:
                self._keep(key, "search", folder, record, record.metrics, record.answers, tasks)
            if rows:
                own = answers.get(record.number, {})
                self._keep(key, "holdout", folder, record, rows, own, tasks)
        return [f"task {task}: {reason}" for task, reason in refused.items() if reason]

    def _keep(
        self,
        key: str,
        side: Side,
        folder: RunFolder,
        record: TrialRecord,
        metrics: Iterable[Metric],
        answers: Mapping[str, AnswerHealth],
        splits: Mapping[str, Split],
    ) -> None:
        if (key, side) in self.found:
            return
        per_document = {
            task: scores
            for task, scores in folder.scores(side, record.number).items()
            if task in splits and scores.documents == tuple(sorted(getattr(splits[task], side)))
        }
        if per_document:
            self.found[key, side] = Known(
                origin=str(folder.path),
                metrics=tuple(metric for metric in metrics if metric.task in per_document),
                per_document=per_document,
                answers={task: own for task, own in answers.items() if task in per_document},
                answered=folder.answers(side, record.number),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reusing:
    """An `Evaluate` that computes only what is not known; the scorecard says what that was."""

    evaluate: Evaluate
    known: KnownScores
    blocks: Callable[[Side], tuple[Documents, ...]]
    """The documents of a side, in the parts in which they are scored."""
    metric_of: Callable[[str, Kind], str | None]
    """The metric that a task must have of a kind; None: it has none."""

    def __call__(
        self,
        recipe: Recipe,
        documents: Documents | Side | Sequence[Documents],
        /,
        *,
        kinds: AbstractSet[Kind] = KINDS,
        go_on: GoOn = lambda scores: True,
    ) -> tuple[Scorecard, Mapping[str, float]]:
        """As `Evaluate`. Where a part is known, the rest is scored without asking `go_on`."""
        known = None
        if isinstance(documents, str):
            known = self.known.found.get((weights_key(recipe), documents))
        if known is None or not isinstance(documents, str):
            return self.evaluate(recipe, documents, kinds=kinds, go_on=go_on)
        blocks = self.blocks(documents)
        tasks = dict.fromkeys(task for block in blocks for task in block)
        lacking = {task: self._lacking(known, task, kinds) for task in tasks}
        if all(missing == kinds for missing in lacking.values()):
            return self.evaluate(recipe, documents, kinds=kinds, go_on=go_on)
        card = known.scorecard({task for task in tasks if lacking[task] != kinds})
        seconds: dict[str, float] = {}
        for missing in dict.fromkeys(lacking.values()):
            if not missing:
                continue
            wanted = {task for task in tasks if lacking[task] == missing}
            parts = [{t: n for t, n in block.items() if t in wanted} for block in blocks]
            more, spent = self.evaluate(recipe, [p for p in parts if p], kinds=missing)
            card = joined(card, more)
            seconds = {k: seconds.get(k, 0.0) + spent.get(k, 0.0) for k in (*seconds, *spent)}
        places = {task: place for place, task in enumerate(tasks)}
        names = [task for task in tasks if lacking[task] != kinds]
        card = replace(
            card,
            metrics=tuple(sorted(card.metrics, key=lambda metric: places[metric.task])),
            remarks=(*card.remarks, f"scores of {', '.join(names)} from {known.origin}"),
            taken_over=self._counts(known, lacking, kinds),
        )
        return card, seconds

    def _counts(
        self, known: Known, lacking: Mapping[str, AbstractSet[Kind]], kinds: AbstractSet[Kind]
    ) -> dict[str, int]:
        """Kind -> how many documents were not scored again."""
        had = {
            kind: [task for task in lacking if kind not in lacking[task]] for kind in sorted(kinds)
        }
        return {
            kind: sum(
                len(known.per_document[t].documents) for t in tasks if self.metric_of(t, kind)
            )
            for kind, tasks in had.items()
        }

    def _lacking(self, known: Known, task: str, kinds: AbstractSet[Kind]) -> frozenset[Kind]:
        """The kinds of which a task's scores are not known."""
        names = {metric.name for metric in known.metrics if metric.task == task}
        wanted = {kind: self.metric_of(task, kind) for kind in kinds}
        if task not in known.per_document:
            return frozenset(kinds)
        return frozenset(
            kind for kind, name in wanted.items() if name is not None and name not in names
        )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [line for key in keys for line in differences(before.get(key), now.get(key), key)]


def _reason(task: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Why no score of the task is valid; None where they are."""
    if task not in before["tasks"]:
        return "is new"

    def asked(identity: Mapping[str, Any]) -> dict[str, Any]:
        keys = {k: v for k, v in identity["tasks"][task].items() if k not in _WHAT_COUNTS}
        return keys | {"code": identity.get("code", {}).get(task)}

    if changes := differences(asked(before), asked(now)):
        return f"is asked otherwise ({'; '.join(changes)})"
    documents = [identity["documents"]["tasks"][task] for identity in (before, now)]
    return None if documents[0] == documents[1] else "has other documents"

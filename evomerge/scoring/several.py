"""Several scorers as one: each task goes to the scorer that knows it."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import reduce

from torch import nn

from evomerge.scoring.gradient import SmoothTerms
from evomerge.scoring.means import refuse_unknown
from evomerge.scoring.questions import Question
from evomerge.scoring.scorecard import DocumentScores, Scorecard, joined
from evomerge.scoring.scorer import KINDS, Documents, Kind, Scorer, Scoring


class Scorers:
    """The scorer of all tasks of its parts, which have no task in common.

    order: of the tasks, which scores and records keep; by default that of the parts.
    """

    def __init__(self, parts: Iterable[Scorer], order: Sequence[str] | None = None) -> None:
        known = {task: part for part in parts for task in part.tasks}
        self._part_of: dict[str, Scorer] = {task: known[task] for task in order or known}

    @property
    def parts(self) -> tuple[Scorer, ...]:
        """The scorers, each once."""
        return tuple({id(part): part for part in self._part_of.values()}.values())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks of all parts."""
        return tuple(self._part_of)

    def documents(self, task: str) -> Sequence[str]:
        """The text of each document of the task; a document's number is its place."""
        return self._part_of[task].documents(task)

    def questions(self, task: str, documents: Sequence[int]) -> Sequence[Question]:
        """What these documents of the task ask."""
        return self._part_of[task].questions(task, documents)

    def objective(self, task: str) -> str:
        """The "metric,filter" of that task which a search is to improve."""
        return self._part_of[task].objective(task)

    def smooth(self, task: str) -> str | None:
        """The name of its smooth metric; None where it has none."""
        return self._part_of[task].smooth(task)

    def start(self, model: nn.Module, kinds: AbstractSet[Kind] = KINDS) -> "ScoringOfSeveral":
        """Begins to score the weights that `model` holds now, with every part."""
        started = {id(part): part.start(model, kinds) for part in self._part_of.values()}
        return ScoringOfSeveral({t: started[id(part)] for t, part in self._part_of.items()})

    def smooth_terms(self, model: nn.Module, documents: Documents, *, tokens: int) -> SmoothTerms:
        """Part after part."""
        for part in self.parts:
            own = {n: numbers for n, numbers in documents.items() if self._part_of[n] is part}
            if own:
                yield from part.smooth_terms(model, own, tokens=tokens)


class ScoringOfSeveral:
    """The scoring of one candidate on the tasks of several scorers."""

    def __init__(self, scoring_of: Mapping[str, Scoring]) -> None:
        self._scoring_of = scoring_of
        self._parts = list({id(part): part for part in scoring_of.values()}.values())
        self._found: dict[str, DocumentScores] = {}

    def add(self, documents: Documents) -> dict[str, DocumentScores]:
        """Scores further documents; task -> its scores per document so far.

        Raises what the parts raise, and UserError for an unknown task.
        """
        refuse_unknown(documents, self._scoring_of)
        for part in self._parts:
            own = {n: numbers for n, numbers in documents.items() if self._scoring_of[n] is part}
            if own:
                self._found |= part.add(own)
        return {task: self._found[task] for task in self._scoring_of if task in self._found}

    def scorecard(self) -> Scorecard:
        """The scores of all documents so far; seconds are the sums over the parts."""
        card = reduce(joined, (part.scorecard() for part in self._parts))
        order = {task: place for place, task in enumerate(self._scoring_of)}
        return replace(
            card,
            metrics=tuple(sorted(card.metrics, key=lambda metric: order[metric.task])),
            per_document={t: card.per_document[t] for t in order if t in card.per_document},
        )

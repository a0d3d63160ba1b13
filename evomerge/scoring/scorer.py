"""What a search needs to know of scoring."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Literal, Protocol

from evomerge.scoring.questions import Question
from evomerge.scoring.scorecard import DocumentScores, Scorecard

if TYPE_CHECKING:  # what only reads runs need not load torch
    from torch import nn

    from evomerge.scoring.gradient import SmoothTerms

Documents = Mapping[str, Sequence[int]]
"""Task -> numbers of its documents, in any order."""
Kind = Literal["metric", "smooth"]
"""What is scored: the tasks' own metrics, or the smooth one that every task has beside them."""
KINDS: frozenset[Kind] = frozenset({"metric", "smooth"})
GoOn = Callable[[Mapping[str, DocumentScores]], bool]
"""From the scores per document so far: whether the rest is worth its cost."""


class Scoring(Protocol):
    """The scoring of one candidate, while the live model holds its weights."""

    def add(self, documents: Documents) -> Mapping[str, DocumentScores]:
        """Scores further documents, none of them twice; task -> its scores per document so far.

        Raises CandidateError where these weights cannot be scored.
        """
        ...

    def scorecard(self) -> Scorecard:
        """The scores of all documents so far."""
        ...


class Scorer(Protocol):
    """Turns a live model into numbers."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it scores."""
        ...

    def documents(self, task: str) -> Sequence[str]:
        """The text of each document of the task; a document's number is its place."""
        ...

    def questions(self, task: str, documents: Sequence[int]) -> Sequence[Question]:
        """What these documents of the task ask, by number, in the order given."""
        ...

    def objective(self, task: str) -> str:
        """The "metric,filter" of that task which a search is to improve."""
        ...

    def smooth(self, task: str) -> str | None:
        """The name of its smooth metric; None where it has none."""
        ...

    def start(self, model: "nn.Module", kinds: AbstractSet[Kind] = KINDS) -> Scoring:
        """Begins to score the weights that `model` holds now.

        Equal weights and equal documents give equal scores, whatever was scored before.
        """
        ...

    def smooth_terms(
        self, model: "nn.Module", documents: Documents, *, tokens: int
    ) -> "SmoothTerms":
        """The smooth scores of documents with the graph of how they come from the weights that
        `model` holds now; documents without a reference are left out. tokens: in a pass, rows
        times columns.

        Raises CandidateError where one is NaN, torch.OutOfMemoryError where memory runs out.
        """
        ...


def score_blocks(
    scorer: Scorer,
    model: "nn.Module",
    blocks: Sequence[Documents],
    *,
    kinds: AbstractSet[Kind] = KINDS,
    go_on: GoOn = lambda scores: True,
) -> Scorecard:
    """Scores block after block, until `go_on` says that it is enough, or none is left."""
    scoring = scorer.start(model, kinds)
    for block in blocks:
        if not go_on(scoring.add(block)):
            break
    return scoring.scorecard()

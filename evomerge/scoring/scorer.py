"""What a search needs to know of scoring."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import nn

from evomerge.scoring.scorecard import Scorecard


class Scorer(Protocol):
    """Turns a live model into numbers."""

    def score(self, model: nn.Module, documents: Mapping[str, Sequence[int]]) -> Scorecard:
        """Scores the weights that `model` holds now.

        documents: task -> numbers of the documents to score, in any order. Equal weights and
        equal documents give equal scores, whatever was scored in between. Raises CandidateError
        where these weights cannot be scored.
        """
        ...

"""A smooth score per document: how probable the right answer is, where metrics count right ones.

Multiple choice: log softmax of the choices' log-likelihoods at the right choice (of several right
ones: their sum). Where the metric that counts is normalised by the choices' lengths, so are these.
Otherwise: mean log-probability of the reference's tokens, in nats; of several references, the
highest. For generation, the reference follows the prompt as the answers of few-shot examples do.
Where answers end with a line break, that or the end of the text, the more probable, belongs to the
reference, so that answers which do not end count less.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from evomerge.scoring.questions import right_choices
from evomerge.scoring.tasks import PreparedDocument, PreparedTask

TextPair = tuple[str, str]
"""Context and continuation."""


class SmoothScores:
    """What is asked for the smooth score of a task's documents, and what follows from it."""

    def __init__(self, prepared: PreparedTask, *, chat_template: bool, end_of_text: str) -> None:
        self._prepared = prepared
        self._chat_template = chat_template
        self._end_of_text = end_of_text
        self._references: dict[int, tuple[TextPair, ...]] = {}

    @property
    def available(self) -> bool:
        """Whether the task has something to be probable: judged by its first document."""
        kind = self._kind(0)
        if kind == "generate_until":
            return bool(self.references(0))
        return kind in ("loglikelihood", "loglikelihood_rolling") or bool(
            right_choices(self._document(0))
        )

    def references(self, number: int) -> tuple[TextPair, ...]:
        """Pairs to be asked beside the document's own requests: those of generation."""
        if self._kind(number) != "generate_until":
            return ()
        if number not in self._references:
            self._references[number] = self._reference_pairs(self._document(number))
        return self._references[number]

    def value(self, number: int, log_likelihoods: Sequence[float], tokens: Sequence[int]) -> float:
        """The score; NaN where the document has no reference.

        log_likelihoods: of the document's references, or else of its own requests, in nats;
        tokens: of how many tokens each is.
        """
        if not log_likelihoods:
            return float("nan")
        if self._kind(number) != "multiple_choice":
            return max(x / count for x, count in zip(log_likelihoods, tokens, strict=True))
        right, lengths = right_choices(self._document(number)), self._lengths(number)
        if not right:
            return float("nan")
        scores = np.array(log_likelihoods[: len(lengths)]) / lengths
        return float(np.logaddexp.reduce(scores[right]) - np.logaddexp.reduce(scores))

    def differentiable(
        self, number: int, tokens: Sequence[int]
    ) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """As `value`, but from a tensor of the log-likelihoods to a tensor; None for NaN."""
        if self._kind(number) != "multiple_choice":
            return (lambda found: (found / found.new_tensor(tokens)).max()) if tokens else None
        right, lengths = right_choices(self._document(number)), self._lengths(number)
        if not right:
            return None

        def score(found: torch.Tensor) -> torch.Tensor:
            scores = found[: len(lengths)] / found.new_tensor(lengths)
            return scores[right].logsumexp(0) - scores.logsumexp(0)

        return score

    def _lengths(self, number: int) -> list[int]:
        """What the log-likelihoods of the choices are divided by."""
        document = self._document(number)
        choices = document.task.doc_to_choice(_doc(document))
        if self._prepared.objective.startswith("acc_norm"):
            return [len(choice) for choice in choices]
        if self._prepared.objective.startswith("acc_bytes"):
            return [len(choice.encode()) for choice in choices]
        return [1] * len(choices)

    def _kind(self, number: int) -> str:
        return str(self._document(number).task.OUTPUT_TYPE)

    def _document(self, number: int) -> PreparedDocument:
        return self._prepared.documents[number]

    def _reference_pairs(self, document: PreparedDocument) -> tuple[TextPair, ...]:
        task, (context, settings) = document.task, document.requests[0].args
        target = task.doc_to_target(_doc(document))
        targets = target if isinstance(target, list) else [target]
        before = "" if self._chat_template else str(task.config.target_delimiter)
        ends = {self._end_of_text} if self._chat_template else self._ends(settings.get("until"))
        texts = [str(text) for text in targets if str(text)]
        return tuple((context, f"{before}{text}{end}") for text in texts for end in sorted(ends))

    def _ends(self, until: str | Sequence[str] | None) -> set[str]:
        """The first stop string that is a line break, and the end of the text; else nothing."""
        stops = [until] if isinstance(until, str) else until or []
        breaks = [stop for stop in stops if stop and not stop.strip(" \n")]
        return {breaks[0], self._end_of_text or breaks[0]} if breaks else {""}


def _doc(document: PreparedDocument) -> Any:
    return document.requests[0].doc

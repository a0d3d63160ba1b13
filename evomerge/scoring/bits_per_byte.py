"""Bits per byte of plain text files: how well a model predicts a text.

A file is cut into documents of about 1,024 bytes, all of one size but for a byte or, so that no
character is cut, three: as many as come nearest to that size. The metric is the mean over
documents of

    bits per byte = -log2 p(document) / bytes of the document, as UTF-8,

so that it has a paired interval, and can be judged before all documents are scored. For documents
of one size it equals what lm-eval's bits_per_byte divides at the end, all bits by all bytes, and
for these to about 1e-5. A document may begin within a word, and is read without what came before
it; that costs every candidate the same few bits.
"""

import math
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise
from pathlib import Path

from torch import nn

from evomerge.errors import CandidateError, UserError
from evomerge.files import read_text
from evomerge.scoring.gradient import Differentiable, SmoothTerms
from evomerge.scoring.language_model import LanguageModel
from evomerge.scoring.means import MeanScores, refuse_unknown
from evomerge.scoring.questions import Question
from evomerge.scoring.scorecard import SMOOTH, DocumentScores, Scorecard
from evomerge.scoring.scorer import KINDS, Documents, Kind
from evomerge.scoring.sharing import LanguageModels

METRIC = "bits_per_byte,none"
"""Lower is better."""
_BYTES = 1024  # of a document: about a hundred documents, enough to split, of 100 KB


class BitsPerByte:
    """The scorer of text files (UTF-8).

    files: task -> its file. Raises UserError where one cannot be read or is empty.
    """

    def __init__(self, files: Mapping[str, Path], language_models: LanguageModels) -> None:
        self._texts = {task: _read(task, file) for task, file in files.items()}
        self._language_models = language_models

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self._texts)

    def documents(self, task: str) -> tuple[str, ...]:
        """The documents of the task's file, in order."""
        return self._texts[task]

    def questions(self, task: str, documents: Sequence[int]) -> list[Question]:
        """Their texts: nothing is asked."""
        return [Question(text=self._texts[task][number]) for number in documents]

    def objective(self, task: str) -> str:
        """Bits per byte, for every task."""
        return METRIC

    def smooth(self, task: str) -> str:
        """Mean log-probability per token, in nats."""
        return SMOOTH

    def start(self, model: nn.Module, kinds: AbstractSet[Kind] = KINDS) -> "BitsPerByteScoring":
        """Begins to score the weights that `model` holds now."""
        language_model = self._language_models.start(model)
        return BitsPerByteScoring(self._texts, language_model, smooth="smooth" in kinds)

    def smooth_terms(self, model: nn.Module, documents: Documents, *, tokens: int) -> SmoothTerms:
        """See `Scorer`."""
        language_model = self._language_models.start(model)
        encoder = language_model.encoder

        def differentiable(task: str, number: int) -> Differentiable:
            text = self._texts[task][number]
            count = encoder.count(text)
            return Differentiable(
                place=(task, number),
                texts=(encoder.pairs(text),),
                score=lambda found: found[0] / count,
            )

        return language_model.smooth_terms(
            (differentiable(task, number) for task, own in documents.items() for number in own),
            tokens=tokens,
        )


class BitsPerByteScoring:
    """The scoring of one candidate on text files."""

    def __init__(
        self, texts: Mapping[str, tuple[str, ...]], model: LanguageModel, *, smooth: bool
    ) -> None:
        metrics = {METRIC: False} | ({SMOOTH: True} if smooth else {})
        self._texts = texts
        self._model = model
        self._scores = {name: MeanScores(name, len(own), metrics) for name, own in texts.items()}
        self._metrics = metrics
        self._begun: list[str] = []
        self._seconds = 0.0
        self._in_model = 0.0

    def add(self, documents: Documents) -> dict[str, DocumentScores]:
        """Scores further documents; task -> its scores per document so far.

        Raises CandidateError, naming the tasks, where a log-probability is NaN or memory runs out;
        UserError for an unknown task or document, or one that was scored before.
        """
        start, before = time.perf_counter(), self._model.seconds
        refuse_unknown(documents, self._texts)
        wanted = [(t, n) for t, own in documents.items() for n in self._scores[t].wanted(own)]
        texts = [self._texts[task][number] for task, number in wanted]
        try:
            found = self._model.rolling_log_likelihoods(texts)
        except CandidateError as error:
            raise CandidateError(f"task {', '.join(map(repr, documents))}: {error}") from error
        for (task, number), text, log_likelihood in zip(wanted, texts, found, strict=True):
            bits = -log_likelihood / math.log(2) / len(text.encode())
            values = {METRIC: bits, SMOOTH: log_likelihood / self._model.encoder.count(text)}
            self._scores[task].add(number, {name: values[name] for name in self._metrics})
        self._begun += [task for task in documents if task not in self._begun]
        self._seconds += time.perf_counter() - start
        self._in_model += self._model.seconds - before
        return {task: self._scores[task].per_document() for task in self._begun}

    def scorecard(self) -> Scorecard:
        """The scores of all documents so far."""
        return Scorecard(
            metrics=tuple(m for task in self._begun for m in self._scores[task].metrics()),
            per_document={task: self._scores[task].per_document() for task in self._begun},
            seconds={"model": self._in_model, "metric": self._seconds - self._in_model},
            remarks=self._model.remarks,
        )


def cut(text: str) -> tuple[str, ...]:
    """The text in pieces of equal size, as many as make them about 1,024 bytes each.

    Joined, they are the text; sizes differ by at most a byte, and by the bytes of a character
    where one would be cut.
    """
    content = text.encode()
    count = max(1, round(len(content) / _BYTES))
    places = [len(content) * piece // count for piece in range(count + 1)]
    # Bytes 10xxxxxx go on with a character; it stays whole in the piece before.
    for piece in range(1, count):
        while content[places[piece]] & 0xC0 == 0x80:
            places[piece] += 1
    return tuple(content[a:b].decode() for a, b in pairwise(places))


def _read(task: str, file: Path) -> tuple[str, ...]:
    try:
        content = read_text(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"task {task!r}: {file} cannot be read: {error}; expected a text file in UTF-8"
        ) from error
    if not content.strip():
        raise UserError(f"task {task!r}: {file} is empty; expected a text")
    return cut(content)

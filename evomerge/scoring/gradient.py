"""Smooth scores with the graph of how they come from the model's weights.

Every row is read whole, in passes of a bounded number of tokens, so that a pass can be freed as
soon as it was gone through backwards. Pairs that the model reads alike (choices of one token)
share a row. In large models the layers' activations are computed a second time on the way back
instead of being held (Chen et al. 2016, arXiv 1604.06174).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from evomerge.scoring.likelihood import Limits, Pair
from evomerge.scoring.logits import input_device, logits_at, not_a_number, pad

_LARGE = 2**27
"""Parameters from which activations are computed twice: a third more work, for a fraction of the
memory; below, the activations of a pass are less than what merging holds."""

Place = tuple[str, int]
"""Task, and number of a document."""
SmoothTerms = Iterator[dict[Place, torch.Tensor]]
"""The smooth scores (0-d, float32) of a few documents at a time; their graph lasts until the next
ones are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Differentiable:
    """A document whose smooth score follows from log-likelihoods."""

    place: Place
    texts: tuple[tuple[Pair, ...], ...]
    """Of each text the contexts and continuations, as tokens, whose log-likelihoods add up to its
    own."""
    score: Callable[[torch.Tensor], torch.Tensor]
    """Log-likelihoods of the texts [n] -> the score."""

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Those of all texts, one after the other."""
        return tuple(pair for text in self.texts for pair in text)


def smooth_terms(
    model: PreTrainedModel,
    documents: Iterable[Differentiable],
    *,
    limits: Limits,
    max_length: int,
) -> SmoothTerms:
    """The scores of all documents, the longest first.

    Raises CandidateError where one is NaN. A document with more tokens than a pass may take has a
    pass of its own.
    """
    by_rows = [(document, _rows(document, max_length)) for document in documents]
    by_rows.sort(key=lambda entry: -max(len(row) for row in entry[1]))
    with _recomputed(model):
        for batch in _batches(by_rows, limits):
            yield _scores(model, batch)


_Rows = dict[tuple[int, ...], list[int]]
"""Tokens that are read -> numbers of the pairs that end there."""


def _rows(document: Differentiable, max_length: int) -> _Rows:
    rows: _Rows = {}
    for number, (context, continuation) in enumerate(document.pairs):
        read = tuple((context + continuation)[-(max_length + 1) : -1])
        rows.setdefault(read, []).append(number)
    return rows


def _batches(
    documents: Sequence[tuple[Differentiable, _Rows]], limits: Limits
) -> Iterator[list[tuple[Differentiable, _Rows]]]:
    batch: list[tuple[Differentiable, _Rows]] = []
    count = width = logits = 0
    for document, rows in documents:
        longest = max(len(row) for row in rows)
        read = sum(len(continuation) for _, continuation in document.pairs)
        full = (count + len(rows)) * max(width, longest) > limits.tokens
        if batch and (full or logits + read > limits.logits):
            yield batch
            batch, count, width, logits = [], 0, 0, 0
        batch.append((document, rows))
        count, width, logits = count + len(rows), max(width, longest), logits + read
    if batch:
        yield batch


def _scores(
    model: PreTrainedModel, batch: Sequence[tuple[Differentiable, _Rows]]
) -> dict[Place, torch.Tensor]:
    rows = [row for _, own in batch for row in own]
    index: list[int] = []
    column: list[int] = []
    target: list[int] = []
    lengths: list[int] = []
    at = 0
    for document, own in batch:
        ends = {
            number: at + place for place, numbers in enumerate(own.values()) for number in numbers
        }
        for number, (_, continuation) in enumerate(document.pairs):
            width = len(rows[ends[number]])
            index += [ends[number]] * len(continuation)
            column += range(width - len(continuation), width)
            target += continuation
            lengths.append(len(continuation))
        at += len(own)
    device = input_device(model)
    tokens, _ = pad(rows, device, side="right")
    places = (torch.tensor(index, device=device), torch.tensor(column, device=device))
    logits, _ = logits_at(
        model,
        lambda states: states[places[0].to(states.device), places[1].to(states.device)][None],
        input_ids=tokens,
        use_cache=False,
    )
    found = logits[0].float()  # [tokens that are scored, vocabulary]
    wanted = torch.tensor(target, device=found.device)
    log_probabilities = found.gather(1, wanted[:, None])[:, 0] - found.logsumexp(-1)
    if bool(log_probabilities.isnan().any()):
        raise not_a_number()
    sums = iter([part.sum() for part in torch.split(log_probabilities, lengths)])
    return {
        document.place: document.score(
            torch.stack([torch.stack([next(sums) for _ in text]).sum() for text in document.texts])
        )
        for document, _ in batch
    }


@contextmanager
def _recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Large models hold only what goes from layer to layer; inside, a layer is computed again."""
    layers = _layers(model) if model.num_parameters() >= _LARGE else []
    forwards = [layer.forward for layer in layers]
    for layer, forward in zip(layers, forwards, strict=True):
        layer.forward = partial(checkpoint, forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own is seen again


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The modules of the list that is as long as the model is deep."""
    depth = model.config.get_text_config().num_hidden_layers
    lists = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)
    return list(next(lists, ()))

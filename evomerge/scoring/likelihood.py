"""Log-likelihoods of continuations: which of them share a forward pass, and the passes.

Only positions whose logits are read go through the output embedding. Pairs that the model reads
alike (choices of one token) share a row, and rows with a common beginning (the question before
its choices) share its keys and values, which are computed once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from evomerge.scoring.logits import check_finite, input_device, logits_at, pad

_LOGITS_AT_ONCE = 2**25  # converted to float32 together: 128 MiB
_WORTH_SHARING = 4  # tokens; a shorter beginning costs more to look up than to read again

Pair = tuple[list[int], list[int]]
"""Tokens of a context (never empty) and of its continuation (never empty)."""
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence that the model reads, and the pairs whose continuations end it."""

    tokens: Tokens
    """Without the beginning that is shared."""
    numbers: tuple[int, ...]
    """Of the pairs. All their continuations but the last token are the last of `tokens`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """The rows of one batch, by the beginning that they share: () if they share none."""

    groups: tuple[tuple[Tokens, tuple[Row, ...]], ...]

    @property
    def numbers(self) -> list[int]:
        """Of the pairs, in the order in which `run_pass` scores them."""
        return [number for _, rows in self.groups for row in rows for number in row.numbers]


def plan_passes(
    pairs: Sequence[Pair], *, max_length: int, batch_size: int, share: bool
) -> list[Pass]:
    """Batches of at most batch_size rows, the longest first, with all pairs in them once.

    Where a pair is longer than max_length + 1 tokens, its beginning is cut off, as in lm-eval.
    share: whether the model can go on from the keys and values of a shared beginning.
    """
    numbers: dict[Tokens, list[int]] = {}
    for number, (context, continuation) in enumerate(pairs):
        row = tuple((context + continuation)[-(max_length + 1) : -1])
        numbers.setdefault(row, []).append(number)
    groups: dict[Tokens, list[Row]] = {}
    for row, own in numbers.items():
        start = len(row) - max(len(pairs[number][1]) for number in own)
        groups.setdefault(row[:start], []).append(Row(tokens=row[start:], numbers=tuple(own)))
    shared: list[tuple[Tokens, tuple[Row, ...]]] = []
    alone: list[tuple[Tokens, tuple[Row, ...]]] = []
    for beginning, rows in groups.items():
        if share and len(rows) > 1 and len(beginning) >= _WORTH_SHARING:
            for start in range(0, len(rows), batch_size):
                shared.append((beginning, tuple(rows[start : start + batch_size])))
        else:
            whole = [Row(tokens=beginning + row.tokens, numbers=row.numbers) for row in rows]
            alone += [((), (row,)) for row in whole]
    shared.sort(key=lambda group: (-len(group[0]), group[0], group[1][0].tokens))
    alone.sort(key=lambda group: (-len(group[1][0].tokens), group[1][0].tokens))
    return [*_batches(shared, batch_size), *_batches(alone, batch_size)]


def run_pass(
    model: PreTrainedModel, batch: Pass, pairs: Sequence[Pair]
) -> list[tuple[float, bool]]:
    """For each of `batch.numbers`: log-probability in nats of its continuation, and whether
    every token of it is the most probable one.

    Raises CandidateError where a log-probability is NaN.
    """
    rows = [row for _, rows in batch.groups for row in rows]
    read, wanted, starts = _positions(rows, pairs)
    device = input_device(model)
    index, column, kept, target = (torch.tensor(v, device=device) for v in (*read, *wanted))
    tokens, _ = pad([row.tokens for row in rows], device, side="right")
    beginning = _read_beginnings(model, batch, tokens) if batch.groups[0][0] else {}
    logits, _ = logits_at(
        model,
        lambda states: states[index.to(states.device), column.to(states.device)][None],
        input_ids=tokens,
        use_cache=bool(beginning),
        **beginning,
    )
    logits = logits[0]  # [positions read, vocabulary]
    kept, target = kept.to(logits.device), target.to(logits.device)
    normaliser, best = _normalise(logits)
    log_probability = logits[kept, target].float() - normaliser[kept]
    check_finite(log_probability)
    hit = best[kept] == target
    # Summed on the CPU: sums by index on a GPU change from run to run.
    sums = np.add.reduceat(log_probability.double().cpu().numpy(), starts)
    hits = np.logical_and.reduceat(hit.cpu().numpy(), starts)
    return list(zip(sums.tolist(), hits.tolist(), strict=True))


def _batches(groups: Sequence[tuple[Tokens, tuple[Row, ...]]], batch_size: int) -> Iterator[Pass]:
    batch: list[tuple[Tokens, tuple[Row, ...]]] = []
    count = 0
    for group in groups:
        if batch and count + len(group[1]) > batch_size:
            yield Pass(groups=tuple(batch))
            batch, count = [], 0
        batch.append(group)
        count += len(group[1])
    if batch:
        yield Pass(groups=tuple(batch))


def _read_beginnings(
    model: PreTrainedModel, batch: Pass, tokens: torch.Tensor
) -> dict[str, object]:
    """Runs the shared beginnings once; what the pass over `tokens` [rows, length] needs of them.

    Padding of a row's own tokens stands on the right, where a causal model never looks back at
    it; that of the beginnings on the left, so that they end where the rows go on.
    """
    device = tokens.device
    beginnings, mask = pad([beginning for beginning, _ in batch.groups], device, side="left")
    padded = {} if bool(mask.all()) else {"attention_mask": mask}
    _, cache = logits_at(
        model,
        lambda states: states[:, :0],
        input_ids=beginnings,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        use_cache=True,
        **padded,
    )
    counts = torch.tensor([len(rows) for _, rows in batch.groups], device=device)
    owner = torch.arange(len(batch.groups), device=device).repeat_interleave(counts)
    cache.batch_select_indices(owner)
    steps = torch.arange(tokens.shape[1], device=device)
    inputs = {"past_key_values": cache, "position_ids": mask.sum(-1)[owner][:, None] + steps}
    if padded:
        inputs["attention_mask"] = torch.cat([mask[owner], torch.ones_like(tokens)], dim=1)
    return inputs


def _positions(
    rows: Sequence[Row], pairs: Sequence[Pair]
) -> tuple[tuple[list[int], list[int]], tuple[list[int], list[int]], list[int]]:
    """(row, column) of every position whose logits are read; (its place among these, target
    token) of every token to score; and where each continuation starts among those tokens."""
    index: list[int] = []
    column: list[int] = []
    kept: list[int] = []
    target: list[int] = []
    starts: list[int] = []
    for place, row in enumerate(rows):
        continuations = [pairs[number][1] for number in row.numbers]
        count = max(len(continuation) for continuation in continuations)
        index += [place] * count
        column += range(len(row.tokens) - count, len(row.tokens))
        for continuation in continuations:
            starts.append(len(target))
            kept += range(len(column) - len(continuation), len(column))
            target += continuation
    return (index, column), (kept, target), starts


def _normalise(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row of [n, vocabulary]: float32 log of the sum of exponentials, and the best token."""
    rows = max(1, _LOGITS_AT_ONCE // logits.shape[-1])
    parts = [(part.float().logsumexp(-1), part.argmax(-1)) for part in torch.split(logits, rows)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

"""One forward pass over a batch of groups: its tensors, made once, and running it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from evomerge.scoring.likelihood import Group, Pair
from evomerge.scoring.logits import logits_at, not_a_number, pad
from evomerge.scoring.prefixes import Tokens
from evomerge.scoring.trunks import Trunks

_LOGITS_AT_ONCE = {"cpu": 2**19, "cuda": 2**25}
"""Converted to float32 together: on a CPU 2 MiB, which its caches hold; elsewhere 128 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """What the model is given, without its cache."""

    tokens: torch.Tensor
    """[rows, columns]."""
    positions: torch.Tensor | None
    """[rows, columns]; None: counted from 0 in every row."""
    mask: torch.Tensor | None
    """[rows, slots of the cache and columns], 0 for padding that could be seen; None: there is
    none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ForwardPass:
    """A batch of groups, ready to run any number of times.

    Rows stand in the order of groups. Padding of a row's own tokens is on the right, where a causal
    model never looks back at it; that of beginnings and of trunks on the left, so that they end
    where the rows go on.
    """

    numbers: tuple[int, ...]
    """Of the pairs, in the order in which they are scored."""
    trunks: tuple[Tokens, ...]
    """Distinct; empty where no group has one."""
    trunk_of: torch.Tensor
    """[rows of the first reading]: places in `trunks`."""
    beginnings: Inputs | None
    group_of: torch.Tensor
    """[rows]: places in `beginnings`."""
    rows: Inputs
    read: tuple[torch.Tensor, torch.Tensor]
    """Row and column of every position whose logits are read."""
    scored: tuple[torch.Tensor, torch.Tensor]
    """Of every token that is scored: the place of its logits among those read, and its id."""
    starts: NDArray[np.int64]
    """Where the tokens of each pair begin among those scored."""


def prepare_pass(
    groups: Sequence[Group], pairs: Sequence[Pair], device: torch.device
) -> ForwardPass:
    """Makes the tensors of a pass, on the device where token ids go."""
    trunks = tuple(dict.fromkeys(group.trunk for group in groups))
    place = {trunk: number for number, trunk in enumerate(trunks)}
    rows = [row for group in groups for row in group.rows]
    owner = [number for number, group in enumerate(groups) for _ in group.rows]
    before = _left(np.array([len(group.trunk) for group in groups]))
    beginnings = None
    if groups[0].beginning:
        beginnings, before = _inputs([g.beginning for g in groups], before, device, side="left")
    own, _ = _inputs([row.tokens for row in rows], before[owner], device, side="right")
    first = groups if groups[0].beginning else [groups[number] for number in owner]
    read, scored, starts = _positions(groups, pairs, device)
    return ForwardPass(
        numbers=tuple(number for row in rows for number in row.numbers),
        trunks=trunks if any(trunks) else (),
        trunk_of=torch.tensor([place[group.trunk] for group in first], device=device),
        beginnings=beginnings,
        group_of=torch.tensor(owner, device=device),
        rows=own,
        read=read,
        scored=scored,
        starts=starts,
    )


def run_pass(
    model: PreTrainedModel, batch: ForwardPass, trunks: Trunks
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """For each of `batch.numbers`: log-probability in nats of its continuation, and whether every
    token of it is the most probable one.

    Raises CandidateError where a log-probability is NaN.
    """
    cache = trunks.past(batch.trunks, batch.trunk_of) if batch.trunks else None
    if batch.beginnings is not None:
        _, cache = logits_at(
            model,
            lambda states: states[:, :0],
            **_arguments(batch.beginnings),
            past_key_values=cache,
            use_cache=True,
        )
        for states in cache.layers:
            states.reorder_cache(batch.group_of)
    index, column = batch.read
    logits, _ = logits_at(
        model,
        lambda states: states[index.to(states.device), column.to(states.device)][None],
        **_arguments(batch.rows),
        past_key_values=cache,
        use_cache=cache is not None,
    )
    logits = logits[0]  # [positions read, vocabulary]
    kept, target = (tensor.to(logits.device) for tensor in batch.scored)
    normaliser, best = _normalise(logits)
    log_probability = logits[kept, target].float() - normaliser[kept]
    # One transfer; and summed on the CPU: sums by index on a GPU change from run to run.
    found = torch.stack([log_probability, (best[kept] == target).float()]).cpu().double().numpy()
    if np.isnan(found[0]).any():
        raise not_a_number()
    sums = np.add.reduceat(found[0], batch.starts)
    return sums, np.logical_and.reduceat(found[1] > 0, batch.starts)


def _arguments(inputs: Inputs) -> dict[str, torch.Tensor]:
    given = {"position_ids": inputs.positions, "attention_mask": inputs.mask}
    present = {name: tensor for name, tensor in given.items() if tensor is not None}
    return {"input_ids": inputs.tokens, **present}


def _left(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Mask [rows, longest]: sequences of these lengths, padded on the left."""
    width = int(lengths.max())
    mask: NDArray[np.int64] = (np.arange(width) >= width - lengths[:, None]).astype(np.int64)
    return mask


def _inputs(
    rows: Sequence[Tokens], before: NDArray[np.int64], device: torch.device, *, side: str
) -> tuple[Inputs, NDArray[np.int64]]:
    """The inputs for rows that follow a cache of mask `before`, and the mask of the cache after.

    side: where the rows are padded. Only padding on the left can be seen by later tokens.
    """
    own = _left(np.array([len(row) for row in rows]))
    tokens, _ = pad(rows, device, side="left" if side == "left" else "right")
    steps = np.arange(own.shape[1])
    if side == "left":
        after = np.concatenate([before, own], axis=1)
        steps = (own.cumsum(1) - 1).clip(min=0)
    else:
        after = np.concatenate([before, np.ones_like(own)], axis=1)
    mask = None if after.all() else torch.tensor(after, device=device)
    positions = None
    if before.shape[1] or mask is not None:
        steps = np.broadcast_to(before.sum(1)[:, None] + steps, own.shape).copy()
        positions = torch.tensor(steps, device=device)
    return Inputs(tokens=tokens, positions=positions, mask=mask), after


def _positions(
    groups: Sequence[Group], pairs: Sequence[Pair], device: torch.device
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor], NDArray[np.int64]]:
    """`read`, `scored` and `starts` of a forward pass."""
    index: list[int] = []
    column: list[int] = []
    kept: list[int] = []
    target: list[int] = []
    starts: list[int] = []
    for place, row in enumerate(row for group in groups for row in group.rows):
        index += [place] * row.reads
        column += range(len(row.tokens) - row.reads, len(row.tokens))
        for number in row.numbers:
            continuation = pairs[number][1]
            starts.append(len(target))
            kept += range(len(column) - len(continuation), len(column))
            target += continuation
    index_, column_, kept_, target_ = (
        torch.tensor(values, device=device) for values in (index, column, kept, target)
    )
    return (index_, column_), (kept_, target_), np.array(starts)


def _normalise(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row of [n, vocabulary]: float32 log of the sum of exponentials, and the best token."""
    most = _LOGITS_AT_ONCE.get(logits.device.type, _LOGITS_AT_ONCE["cuda"])
    normalisers, tokens = [], []
    for part in torch.split(logits, max(1, most // logits.shape[-1])):
        part = part.float()
        best = part.max(-1)
        rest = (part - best.values[:, None]).exp_().sum(-1)
        normalisers.append(best.values + rest.log_())
        tokens.append(best.indices)
    return torch.cat(normalisers), torch.cat(tokens)

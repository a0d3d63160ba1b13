"""Sequences that are decoded together: their keys and values, written in place.

The last tokens of all rows stand in one column, so that each row's tokens are contiguous and end
where its next token goes; on the left of shorter rows is padding. Distances between columns are
then distances between tokens, which is what masks of sliding windows are made from.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from evomerge.scoring.logits import check_finite, input_device, logits_at, pad

_HEAD_ROOM = 32  # columns: tokens that are written before keys and values are copied

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer: [rows, heads, columns, size]."""


class Rows:
    """The sequences that a model goes on with, one token at a time. It begins with none.

    last_position: the largest position that any sequence reaches. A row which has ended, but
    still takes part, stays there, since models with learned positions know no others.
    """

    def __init__(self, model: PreTrainedModel, *, last_position: int) -> None:
        self._model = model
        self._last_position = last_position
        self._lengths: list[int] = []  # tokens read of each row
        self._cache = Cache(layers=[])
        device = input_device(model)
        self._tokens = torch.empty(0, dtype=torch.int64, device=device)  # read by the next step
        self._positions = torch.empty(0, 1, dtype=torch.int64, device=device)  # of these
        self._mask = torch.empty(0, 0, dtype=torch.bool, device=device)  # with head room

    def step(self) -> list[int]:
        """The most probable next token of each row, which is read in the step after this.

        Raises CandidateError where a logit is NaN.
        """
        self._lengths = [length + 1 for length in self._lengths]
        columns = max(self._lengths)
        if columns > self._mask.shape[1]:
            self._mask = _widen(self._mask)
        output = self._model(
            input_ids=self._tokens[:, None],
            attention_mask=self._mask[:, :columns] if min(self._lengths) < columns else None,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._positions = (self._positions + 1).clamp(max=self._last_position)
        self._tokens, best = _most_probable(output.logits)
        return best

    def replace(self, kept: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[int]:
        """Keeps these rows, in this order, and adds one for each prompt behind them.

        Returns the most probable next token of each prompt; raises CandidateError where a logit
        is NaN. Not both `kept` and `prompts` may be empty.
        """
        held: Layers = [layer.filled() for layer in self._cache.layers]  # type: ignore[union-attr]
        lengths = [self._lengths[row] for row in kept]
        select = torch.tensor(kept, dtype=torch.int64, device=self._tokens.device)
        tokens, read = self._tokens[select], [_no_rows(*layer) for layer in held]
        first: list[int] = []
        if prompts:
            logits, read = read_prompts(self._model, prompts)
            joining, first = _most_probable(logits)
            tokens = torch.cat([tokens, joining])
        if not kept:
            held = [_no_rows(*layer) for layer in read]
        longest = max(lengths, default=0)
        self._cache = Cache(
            layers=[
                _Layer(
                    _join(old[0], select, longest, new[0]), _join(old[1], select, longest, new[1])
                )
                for old, new in zip(held, read, strict=True)
            ]
        )
        self._lengths = [*lengths, *map(len, prompts)]
        self._tokens = tokens
        read_so_far = torch.tensor(self._lengths, device=tokens.device)[:, None]
        self._positions = read_so_far.clamp(max=self._last_position)
        columns = max(self._lengths)
        self._mask = _widen(torch.arange(columns, device=tokens.device) >= columns - read_so_far)
        return first


def read_prompts(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, Layers]:
    """Runs the prompts as one batch: logits after them, [prompts, 1, vocabulary], and their keys
    and values, in whose columns the prompts stand on the right."""
    tokens, mask = pad(prompts, input_device(model), side="left")
    # A cache that knows no sliding windows keeps every column; the mask hides those outside.
    logits, cache = logits_at(
        model,
        lambda states: states[:, -1:],
        input_ids=tokens,
        attention_mask=None if bool(mask.all()) else mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=DynamicCache(),
        use_cache=True,
    )
    return logits, [(layer.keys, layer.values) for layer in cache.layers]


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, [rows, heads, columns with head room, size].

    All columns are kept, also of a layer with a sliding window.
    """

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values
        self._columns: int = keys.shape[2] - _HEAD_ROOM  # filled
        self.is_initialized = True

    def filled(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.keys[:, :, : self._columns], self.values[:, :, : self._columns]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: it is there from the beginning."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start, self._columns = self._columns, self._columns + key_states.shape[2]
        if self._columns > self.keys.shape[2]:
            self.keys, self.values = _lengthen(self.keys), _lengthen(self.values)
        self.keys[:, :, start : self._columns] = key_states
        self.values[:, :, start : self._columns] = value_states
        return self.filled()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._columns + query_length, 0

    def get_seq_length(self) -> int:
        return self._columns

    def get_max_length(self) -> int:
        return -1  # without a limit


def _join(old: torch.Tensor, kept: torch.Tensor, longest: int, new: torch.Tensor) -> torch.Tensor:
    """The last `longest` columns of the kept rows of `old`, and below them all rows of `new`,
    aligned on the right, with head room."""
    rows, heads, columns, size = new.shape
    columns = max(longest, columns)
    # Zeros, since padding has no weight but is multiplied with it.
    joined = new.new_zeros(len(kept) + rows, heads, columns + _HEAD_ROOM, size)
    start = old.shape[2] - longest
    joined[: len(kept), :, columns - longest : columns] = old[kept.to(old.device), :, start:]
    joined[len(kept) :, :, columns - new.shape[2] : columns] = new
    return joined


def _no_rows(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return keys[:0, :, :0], values[:0, :, :0]


def _lengthen(states: torch.Tensor) -> torch.Tensor:
    return torch.cat([states, torch.zeros_like(states[:, :, :_HEAD_ROOM])], dim=2)


def _widen(mask: torch.Tensor) -> torch.Tensor:
    return torch.cat([mask, mask.new_ones(len(mask), _HEAD_ROOM)], dim=1)


def _most_probable(logits: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """The best token of each row of [rows, 1, vocabulary], on the device and as numbers."""
    best = logits[:, -1].max(dim=-1)
    # One copy from the device tells both.
    tokens = torch.where(best.values.isnan(), -1, best.indices).tolist()
    if -1 in tokens:
        check_finite(best.values)
    return best.indices, tokens

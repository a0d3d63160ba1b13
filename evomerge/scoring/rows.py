"""Sequences that are decoded together: their keys and values, written in place.

The last tokens of all rows stand in one column, so that each row's tokens are contiguous and end
where its next token goes; on the left of shorter rows is padding. Distances between columns are
then distances between tokens, which is what masks of sliding windows are made from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from evomerge.scoring.logits import input_device, logits_at, not_a_number, pad
from evomerge.scoring.prefixes import Tokens
from evomerge.scoring.trunks import Trunks

_HEAD_ROOM = 32  # columns: tokens that are written before keys and values are copied

_PADDING = {"cpu": 64}
_ELSEWHERE = 1024
"""Tokens of padding, by device, that cost about as much as one more pass over the weights."""

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer: [rows, heads, columns, size]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A sequence that is to be read."""

    tokens: Tokens
    trunk: int = 0
    """How many of its first tokens are read once for all prompts that begin so."""

    @property
    def rest(self) -> Tokens:
        """What stands behind the trunk; never empty."""
        return self.tokens[self.trunk :]


class Rows:
    """The sequences that a model goes on with, one token at a time. It begins with none.

    tokens: rows times columns that are read together at most. last_position: the largest position
    that any sequence reaches. A row which has ended, but still takes part, stays there, since
    models with learned positions know no others.
    """

    def __init__(
        self, model: PreTrainedModel, trunks: Trunks, *, tokens: int, last_position: int
    ) -> None:
        self._model = model
        self._trunks = trunks
        self._most = tokens
        self._last_position = last_position
        self._lengths: list[int] = []  # tokens read of each row
        self._cache = Cache(layers=[])
        self._device = device = input_device(model)
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
        tokens, best = _most_probable(output.logits)
        self._tokens = tokens.to(self._device)
        return best

    def replace(self, kept: Sequence[int], prompts: Sequence[Prompt]) -> list[int]:
        """Keeps these rows, in this order, and adds one for each prompt behind them.

        The prompts come the longest first; not both they and `kept` may be empty. Returns the most
        probable next token of each prompt; raises CandidateError where a logit is NaN.
        """
        lengths = [self._lengths[row] for row in kept]
        longest = max(lengths, default=0)
        padding = _PADDING.get(self._device.type, _ELSEWHERE)
        groups = _of_similar_length(prompts, padding, self._most)
        read = [read_prompts(self._model, group, self._trunks) for group in groups]
        chosen = [_most_probable(logits) for logits, _ in read]
        select = torch.tensor(kept, dtype=torch.int64, device=self._device)
        first = [tokens.to(self._device) for tokens, _ in chosen]
        self._tokens = torch.cat([self._tokens[select], *first])
        layers = self._cache.layers
        if not kept:
            layers[:] = [_Layer() for _ in read[0][1]]
        for number, layer in enumerate(layers):
            layer.join(select, longest, [states[number] for _, states in read])  # type: ignore[union-attr]
        self._lengths = [*lengths, *(len(prompt.tokens) for prompt in prompts)]
        columns = max(self._lengths)
        read_so_far = torch.tensor(self._lengths, device=self._device)[:, None]
        self._positions = read_so_far.clamp(max=self._last_position)
        self._mask = _widen(torch.arange(columns, device=self._device) >= columns - read_so_far)
        return [token for _, numbers in chosen for token in numbers]


def read_prompts(
    model: PreTrainedModel, prompts: Sequence[Prompt], trunks: Trunks
) -> tuple[torch.Tensor, Layers]:
    """Runs the prompts as one batch: logits after them, [prompts, 1, vocabulary], and their keys
    and values, in whose columns the prompts stand on the right."""
    device = input_device(model)
    tokens, mask = pad([prompt.rest for prompt in prompts], device, side="left")
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    # A cache that knows no sliding windows keeps every column; the mask hides those outside.
    cache: Any = DynamicCache()
    before = torch.tensor([prompt.trunk for prompt in prompts], device=device)[:, None]
    width = max(prompt.trunk for prompt in prompts)
    if width:
        shared = [prompt.tokens[: prompt.trunk] for prompt in prompts]
        distinct = list(dict.fromkeys(shared))
        trunks.read([trunk for trunk in distinct if trunk], [])
        owner = torch.tensor([distinct.index(trunk) for trunk in shared], device=device)
        cache = trunks.past(distinct, owner)
        columns = torch.arange(width, device=device)
        mask = torch.cat([(columns >= width - before).to(mask.dtype), mask], dim=1)
    padded = not bool(mask.all())
    logits, cache = logits_at(
        model,
        lambda states: states[:, -1:],
        input_ids=tokens,
        attention_mask=mask if padded else None,
        position_ids=before + positions,
        past_key_values=cache,
        use_cache=True,
    )
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    if width and padded:
        layers = _to_the_right(layers, mask, max(len(prompt.tokens) for prompt in prompts))
    return logits, layers


def _to_the_right(layers: Layers, mask: torch.Tensor, columns: int) -> Layers:
    """Moves what the mask [rows, slots] shows to the last of so many columns, gaps closed."""
    slots = mask.shape[1]
    # Slots that are hidden come first, those that are shown keep their order behind them.
    order = (mask * slots + torch.arange(slots, device=mask.device)).argsort(dim=1)[:, -columns:]

    def moved(states: torch.Tensor) -> torch.Tensor:
        _, heads, _, size = states.shape
        index = order.to(states.device)[:, None, :, None].expand(-1, heads, -1, size)
        return states.gather(2, index)

    return [(moved(keys), moved(values)) for keys, values in layers]


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, [rows, heads, columns with head room, size].

    All columns are kept, also of a layer with a sliding window.
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: torch.Tensor = torch.empty(0)
        self.values: torch.Tensor = torch.empty(0)
        self._columns = 0  # filled
        self.is_initialized = True

    def join(self, kept: torch.Tensor, longest: int, read: Layers) -> None:
        """Keeps the last `longest` columns of these rows, and adds below them rows just read."""
        columns = max(longest, *(keys.shape[2] for keys, _ in read), 0)
        parts = list(read)
        if len(kept):
            rows = kept.to(self.keys.device)
            start = self._columns - longest
            last = slice(start, self._columns)
            parts.insert(0, (self.keys[rows, :, last], self.values[rows, :, last]))
        self.keys = _stack([keys for keys, _ in parts], columns)
        self.values = _stack([values for _, values in parts], columns)
        self._columns = columns

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
        return self.keys[:, :, : self._columns], self.values[:, :, : self._columns]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._columns + query_length, 0

    def get_seq_length(self) -> int:
        return self._columns

    def get_max_length(self) -> int:
        return -1  # without a limit


def _stack(parts: Sequence[torch.Tensor], columns: int) -> torch.Tensor:
    """The rows of all parts, [rows, heads, at most `columns`, size] each, aligned on the right
    of `columns`, with head room."""
    _, heads, _, size = parts[0].shape
    # Zeros, since padding has no weight but is multiplied with it.
    room = columns + _HEAD_ROOM
    stacked = parts[0].new_zeros(sum(map(len, parts)), heads, room, size)
    start = 0
    for part in parts:
        stacked[start : start + len(part), :, columns - part.shape[2] : columns] = part
        start += len(part)
    return stacked


def _of_similar_length(prompts: Sequence[Prompt], padding: int, tokens: int) -> list[list[Prompt]]:
    """The prompts, the longest first, in groups of which none has more than that much padding,
    nor more than so many tokens with it."""
    groups: list[list[Prompt]] = []
    padded = 0
    for prompt in prompts:
        width = len(groups[-1][0].tokens) if groups else 0
        padded += width - len(prompt.tokens)
        if not groups or padded > padding or (len(groups[-1]) + 1) * width > tokens:
            groups.append([])
            padded = 0
        groups[-1].append(prompt)
    return groups


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
        raise not_a_number()
    return best.indices, tokens

"""Keys and values of trunks: read once per candidate, looked up by every pass that begins so."""

from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from evomerge.scoring.logits import input_device, logits_at, pad
from evomerge.scoring.prefixes import Tokens

KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]
"""Per layer: [heads, tokens, width] each."""


class Trunks:
    """The trunks that the model has read with its present weights.

    held: tokens that are kept at most; beyond that, trunks are read again when they are needed.
    tokens: rows times columns of one forward pass.
    """

    def __init__(self, model: PreTrainedModel, *, tokens: int, held: int) -> None:
        self._model = model
        self._tokens = tokens
        self._held = held
        self._known: dict[Tokens, KeysAndValues] = {}

    def read(self, wanted: Sequence[Tokens], later: Sequence[Tokens]) -> None:
        """Makes sure that the trunks `wanted` are there, and while at it reads some of `later`.

        Both in the order in which they will be needed.
        """
        missing = [trunk for trunk in wanted if trunk not in self._known]
        if not missing:
            return
        room = self._held - sum(map(len, self._known))
        if sum(map(len, missing)) > room:
            self._known = {trunk: self._known[trunk] for trunk in wanted if trunk in self._known}
            room = self._held - sum(map(len, self._known))
        needed = len(missing)
        for trunk in later:
            if trunk not in self._known and trunk not in missing:
                if sum(map(len, missing)) + len(trunk) > room:
                    break
                missing.append(trunk)
        while needed > 0:
            count = self._fitting(missing)
            self._read(missing[:count])
            missing, needed = missing[count:], needed - count

    def past(self, trunks: Sequence[Tokens], owner: torch.Tensor) -> DynamicCache:
        """Their keys and values as a cache with one row for each of `owner`, padded on the left.

        trunks: distinct, and read; () stands for none. owner: [rows], places in `trunks`.
        """
        cache = DynamicCache(config=self._model.config)
        known = [self._known.get(trunk) for trunk in trunks]
        count = next(len(layers) for layers in known if layers is not None)
        width = max(map(len, trunks))
        for layer in range(count):
            keys = _pad_left([None if each is None else each[layer][0] for each in known], width)
            values = _pad_left([None if each is None else each[layer][1] for each in known], width)
            cache.update(keys, values, layer)
        for states in cache.layers:
            states.reorder_cache(owner)  # type: ignore[arg-type]  # an int64 tensor
        return cache

    def _fitting(self, trunks: Sequence[Tokens]) -> int:
        """How many of the first trunks one pass may read."""
        count, width = 0, 0
        for trunk in trunks:
            width = max(width, len(trunk))
            if count and (count + 1) * width > self._tokens:
                break
            count += 1
        return count

    def _read(self, trunks: Sequence[Tokens]) -> None:
        tokens, _ = pad(trunks, input_device(self._model), side="right")
        _, cache = logits_at(
            self._model, lambda states: states[:, :0], input_ids=tokens, use_cache=True
        )
        for row, trunk in enumerate(trunks):
            self._known[trunk] = [
                (x.keys[row, :, : len(trunk)].clone(), x.values[row, :, : len(trunk)].clone())
                for x in cache.layers
            ]


def _pad_left(states: Sequence[torch.Tensor | None], width: int) -> torch.Tensor:
    """[rows, heads, width, size] from [heads, tokens, size] each; None: padding alone."""
    like = next(each for each in states if each is not None)
    padded = like.new_zeros(len(states), like.shape[0], width, like.shape[2])
    for row, each in zip(padded, states, strict=True):
        if each is not None:
            row[:, width - each.shape[1] :] = each
    return padded

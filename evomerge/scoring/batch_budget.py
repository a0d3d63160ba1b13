"""How much a forward pass takes: given, or found by a probe of the device's free memory."""

from typing import Any

import torch
from transformers import PreTrainedModel

from evomerge.devices import free_bytes
from evomerge.scoring.likelihood import Limits
from evomerge.scoring.logits import input_device, logits_at

_MOST = {"cpu": 2**11, "cuda": 2**14}
"""Tokens beyond which a pass is no faster per token; on a CPU it then leaves the caches."""
_HELD = 8  # times as many tokens may be held by their keys and values as are computed
_LOGITS = 2**27  # at once: 512 MiB in float32
_SHARE = 0.5  # of the free memory; merging wants some as well
_SLOTS = 128
"""Sequences decoded together at most."""
_PROBED = 256  # tokens of the probe
_LEAST = 64  # tokens; with less, memory is not the batch's fault
_WIDE = 16  # times the width of the embedding: what a layer computes of a token, at once


class BatchBudget:
    """The tokens of a forward pass, the same for all candidates: the last digits of bfloat16
    results depend on how texts are batched.

    tokens: rows times columns, computed in one pass; None: found at `settle`, a power of two.
    """

    def __init__(self, tokens: int | None = None) -> None:
        self._tokens = tokens

    @property
    def tokens(self) -> int:
        """The budget; ValueError before `settle` has found it."""
        if self._tokens is None:
            raise ValueError("the budget is not known before a model is there")
        return self._tokens

    @property
    def texts(self) -> int:
        """A cautious number of texts in a batch, for what counts texts."""
        return max(1, min(64, self.tokens // 64))

    def slots(self, longest: int) -> int:
        """How many sequences of so many tokens are decoded together."""
        return max(1, min(_SLOTS, self.held // longest))

    @property
    def held(self) -> int:
        """Tokens whose keys and values a pass may hold."""
        return _HELD * self.tokens

    def limits(self, vocabulary: int, window: int | None) -> Limits:
        """What a pass of a model may take. vocabulary: number of its logits per position."""
        logits = max(1, _LOGITS // vocabulary)
        return Limits(tokens=self.tokens, held=self.held, logits=logits, window=window)

    def settle(self, model: PreTrainedModel) -> None:
        """Finds the budget by reading a few tokens, unless it is known.

        As many tokens as half of the device's free memory holds, with the keys and values of eight
        times as many, but not more than make a pass faster: a power of two.
        """
        if self._tokens is not None:
            return
        device = input_device(model)
        held, computed = _bytes_per_token(model, device)
        room = _SHARE * free_bytes(device) / (computed + _HELD * held)
        most = _MOST.get(device.type, _MOST["cuda"])
        fitting = 1 << max(0, int(room).bit_length() - 1)
        self._tokens = max(_LEAST, min(most, fitting))

    def set(self, tokens: int) -> None:
        """Takes over what was found before; only before a scoring begins."""
        self._tokens = tokens

    def halve(self) -> bool:
        """Half of the budget from now on; whether there was enough to be halved."""
        if self.tokens // 2 < _LEAST:
            return False
        self._tokens = self.tokens // 2
        return True


@torch.no_grad()
def _bytes_per_token(model: PreTrainedModel, device: torch.device) -> tuple[float, float]:
    """(to hold its keys and values, to compute it): measured on a GPU; on a CPU, which does not
    tell what a computation took, the latter follows from the width of the embeddings."""
    embedding: Any = model.get_input_embeddings().weight
    tokens = torch.zeros(1, _PROBED, dtype=torch.int64, device=device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    _, cache = logits_at(model, lambda states: states[:, -1:], input_ids=tokens, use_cache=True)
    layers = getattr(cache, "layers", [])
    states = [s for x in layers for s in (getattr(x, "keys", None), getattr(x, "values", None))]
    held = sum(s.numel() * s.element_size() for s in states if isinstance(s, torch.Tensor))
    computed = _WIDE * embedding.shape[-1] * embedding.element_size() * _PROBED
    if on_gpu:
        computed = torch.cuda.max_memory_allocated(device) - before - held
    return held / _PROBED, max(computed, 1) / _PROBED

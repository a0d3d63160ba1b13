"""Forward passes that compute no more than is read."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from evomerge.errors import CandidateError


def logits_at(
    model: PreTrainedModel, select: Callable[[torch.Tensor], torch.Tensor], **inputs: Any
) -> tuple[torch.Tensor, Any]:
    """Logits of selected positions only, and the key/value cache.

    select: hidden states [batch, length, width] -> those to read, [..., width]; it works on
    logits as well. Only the selected states pass through the output embedding, which for short
    texts and large vocabularies is most of the work. The rest of the model's forward runs as it
    is, so scaled and capped logits stay right.

    Raises CandidateError where a logit is NaN.
    """
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        output = model(**inputs)
        return select(output.logits), output.get("past_key_values")
    hook = head.register_forward_pre_hook(lambda _, arguments: (select(arguments[0]),))
    try:
        output = model(**inputs)
    finally:
        hook.remove()
    return output.logits, output.get("past_key_values")


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go: where the embeddings run, also if accelerate keeps them elsewhere."""
    if model.device.type != "meta":
        return model.device
    embeddings: Any = model.get_input_embeddings()
    hook = embeddings._hf_hook
    hooks = getattr(hook, "hooks", (hook,))
    device = next(each.execution_device for each in hooks if getattr(each, "offload", False))
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def not_a_number() -> CandidateError:
    """What is raised for logits that are NaN."""
    return CandidateError(
        "the model's logits are not numbers (NaN): its weights are NaN, infinite or far too large"
    )


def keeps_keys_and_values(model: PreTrainedModel) -> bool:
    """Whether what the model keeps of tokens read is their keys and values alone.

    Only then may it go on from padded, copied or selected rows.
    """
    return why_nothing_is_shared(model) is None


def why_nothing_is_shared(model: PreTrainedModel) -> str | None:
    """Why the model cannot go on from the keys and values of a shared beginning; None: it can."""
    name = type(model).__name__
    layers = DynamicCache(config=model.config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    if not plain or getattr(model, "_is_stateful", False):
        return f"{name} keeps a state of what it has read, not keys and values alone"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{name} cannot be told the positions of tokens"
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    each = rope.values() if all(isinstance(part, dict) for part in rope.values()) else [rope]
    if kinds := {str(part.get("rope_type")) for part in each} & {"dynamic", "longrope"}:
        return f"positions of {name} depend on the length of the text ({', '.join(kinds)} rope)"
    return None


def sliding_window(model: PreTrainedModel) -> int | None:
    """Tokens of the shortest sliding window; None: every layer sees all tokens."""
    layers = DynamicCache(config=model.config).layers
    windows = [x.sliding_window for x in layers if isinstance(x, DynamicSlidingWindowLayer)]
    return min(windows, default=None)


def pad(
    rows: Sequence[Sequence[int]], device: torch.device, *, side: Literal["left", "right"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, with zeros on that side, and their mask: both [rows, longest row], int64."""
    width = max(len(row) for row in rows)
    tokens, mask = [], []
    for row in rows:
        zeros, ones = [0] * (width - len(row)), [1] * len(row)
        tokens.append([*zeros, *row] if side == "left" else [*row, *zeros])
        mask.append(zeros + ones if side == "left" else ones + zeros)
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)

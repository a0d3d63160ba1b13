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


def check_finite(values: torch.Tensor) -> None:
    """Raises CandidateError where a value is NaN."""
    if bool(values.isnan().any()):
        raise CandidateError(
            "the model's logits are not numbers (NaN): its weights are NaN, infinite or far too "
            "large"
        )


def keeps_keys_and_values(model: PreTrainedModel) -> bool:
    """Whether what the model keeps of tokens read is their keys and values alone.

    Only then may it go on from padded, copied or selected rows. Not so for state space models
    and other recurrent layers.
    """
    layers = DynamicCache(config=model.config).layers
    return (
        all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        and not getattr(model, "_is_stateful", False)
        and "position_ids" in inspect.signature(model.forward).parameters
    )


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

"""Greedy decoding of a batch, which does what generate(do_sample=False) does with less overhead."""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from evomerge.scoring.logits import (
    check_finite,
    input_device,
    keeps_keys_and_values,
    logits_at,
    pad,
)

# What a generation config may hold without changing greedy decoding.
_HARMLESS = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p"),
    *("max_length", "use_cache", "transformers_version", "_from_model_config"),
    *("output_attentions", "output_hidden_states", "return_dict_in_generate"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What `decode` makes of one prompt."""

    tokens: list[int]
    cut_off: bool
    """Whether max_new_tokens ended it."""


def decodes_greedily(model: PreTrainedModel) -> bool:
    """Whether `decode` does for this model what its own `generate(do_sample=False)` does.

    Not so where the generation config changes the logits (a repetition penalty, forbidden or
    forced tokens) or how long an answer may be, or where the state between steps is not keys and
    values alone.
    """
    config = model.generation_config
    changed = {name for name, value in config.to_diff_dict().items() if value is not None}
    return changed <= _HARMLESS and keeps_keys_and_values(model)


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_tokens: AbstractSet[int],
    stopped: Callable[[list[list[int]]], list[bool]],
) -> list[Answer]:
    """The most probable next tokens of every prompt, run as one batch.

    An answer ends with, and includes, the first of `end_tokens`, or the token after which
    `stopped` says so (it is handed the answers so far of the rows that still run), or has
    max_new_tokens tokens. Rows that have ended leave the batch when half of it has.

    Raises CandidateError where a logit is NaN.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    running = list(range(len(prompts)))  # the prompt of each row of the batch
    ended = [False] * len(prompts)
    tokens, mask = pad(prompts, input_device(model), side="left")
    padded = not bool(mask.all())
    cache = None
    for _ in range(max_new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits, cache = logits_at(
            model,
            lambda states: states[:, -1:],
            input_ids=tokens,
            attention_mask=mask if padded else None,
            position_ids=positions[:, -tokens.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        )
        best = logits[:, -1].float().max(dim=-1)
        check_finite(best.values)
        _append(answers, ended, running, best.indices.tolist(), end_tokens, stopped)
        keep = [row for row, prompt in enumerate(running) if not ended[prompt]]
        if not keep:
            break
        tokens = best.indices[:, None]
        if len(keep) <= len(running) // 2:
            rows = torch.tensor(keep, device=tokens.device)
            cache.batch_select_indices(rows)
            tokens, mask = tokens[rows], mask[rows]
            running = [running[row] for row in keep]
        mask = torch.cat([mask, mask.new_ones(len(running), 1)], dim=1)
    return [
        Answer(tokens=tokens, cut_off=not end) for tokens, end in zip(answers, ended, strict=True)
    ]


def _append(
    answers: list[list[int]],
    ended: list[bool],
    running: Sequence[int],
    best: Sequence[int],
    end_tokens: AbstractSet[int],
    stopped: Callable[[list[list[int]]], list[bool]],
) -> None:
    """Adds one token to every answer that has not ended, and marks those that now have."""
    open_answers = []
    for prompt, token in zip(running, best, strict=True):
        if not ended[prompt]:
            answers[prompt].append(token)
            ended[prompt] = token in end_tokens
            if not ended[prompt]:
                open_answers.append(prompt)
    if open_answers:
        stops = stopped([answers[prompt] for prompt in open_answers])
        for prompt, stop in zip(open_answers, stops, strict=True):
            ended[prompt] = stop

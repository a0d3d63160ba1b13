"""Greedy decoding of many prompts, which does what generate(do_sample=False) does in less time.

Places of answers that have ended are taken by prompts that wait, so that a long answer keeps no
others waiting.
"""

from collections import deque
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

import torch
from transformers import PreTrainedModel

from evomerge.scoring.generator import Answer
from evomerge.scoring.logits import keeps_keys_and_values
from evomerge.scoring.rows import Prompt, Rows
from evomerge.scoring.trunks import Trunks

# What a generation config may hold without changing greedy decoding.
_HARMLESS = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p"),
    *("max_length", "use_cache", "transformers_version", "_from_model_config"),
    *("output_attentions", "output_hidden_states", "return_dict_in_generate"),
}


def decodes_greedily(model: PreTrainedModel) -> bool:
    """Whether `decode` does for this model what its own `generate(do_sample=False)` does.

    Not so where the generation config changes the logits (a repetition penalty, forbidden or
    forced tokens) or how long an answer may be, or where the state between steps is not keys and
    values alone.
    """
    config = model.generation_config
    changed = {name for name, value in config.to_diff_dict().items() if value is not None}
    return changed <= _HARMLESS and keeps_keys_and_values(model)


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    trunks: Trunks,
    *,
    slots: int,
    tokens: int,
    max_new_tokens: int,
    end_tokens: AbstractSet[int],
    stopped: Callable[[list[list[int]]], list[bool]],
) -> list[Answer]:
    """The most probable next tokens of every prompt, at most `slots` of them at once, and at most
    `tokens` (rows times columns) of prompts read in one pass.

    An answer ends with, and includes, the first of `end_tokens`, or the token after which
    `stopped` says so (it is handed the answers so far of rows that still run), or has
    max_new_tokens tokens (at least 1). The longest prompts come first. When a quarter of the
    rows has ended they leave together, and waiting prompts are read and take their places.

    Raises CandidateError where a logit is NaN.
    """
    texts = [prompt.tokens for prompt in prompts]
    waiting = deque(sorted(range(len(texts)), key=lambda n: (-len(texts[n]), texts[n])))
    last = max(map(len, texts), default=0) + max_new_tokens - 2
    rows = Rows(model, trunks, tokens=tokens, last_position=max(0, last))
    running: list[int] = []  # the prompt of each row
    growing: list[list[int]] = [[] for _ in prompts]
    answers: dict[int, Answer] = {}
    while waiting or running:
        kept = [row for row, prompt in enumerate(running) if prompt not in answers]
        if 4 * len(kept) <= 3 * len(running):
            free = slots - len(kept)
            joining = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            running = [*(running[row] for row in kept), *joining]
            if not running:
                break
            first = rows.replace(kept, [prompts[prompt] for prompt in joining])
            spoke = zip(joining, first, strict=True)
        else:
            spoke = zip(running, rows.step(), strict=True)
        still = [(prompt, token) for prompt, token in spoke if prompt not in answers]
        for prompt, token in still:
            growing[prompt].append(token)
        _finish(
            [prompt for prompt, _ in still], growing, answers, max_new_tokens, end_tokens, stopped
        )
    return [answers[place] for place in range(len(prompts))]


def _finish(
    prompts: Sequence[int],
    growing: Sequence[list[int]],
    answers: dict[int, Answer],
    max_new_tokens: int,
    end_tokens: AbstractSet[int],
    stopped: Callable[[list[list[int]]], list[bool]],
) -> None:
    """Puts those of the growing answers to these prompts into `answers` that are now complete."""
    still = []
    for prompt in prompts:
        if growing[prompt][-1] in end_tokens:
            answers[prompt] = Answer(tokens=tuple(growing[prompt]), cut_off=False)
        else:
            still.append(prompt)
    stops = stopped([growing[prompt] for prompt in still]) if still else []
    for prompt, stop in zip(still, stops, strict=True):
        if stop or len(growing[prompt]) == max_new_tokens:
            answers[prompt] = Answer(tokens=tuple(growing[prompt]), cut_off=not stop)

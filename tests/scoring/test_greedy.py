"""Decoding with slots against transformers' own generate, prompt by prompt, in float32."""

import math
import random
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from evomerge.errors import CandidateError
from evomerge.scoring.generator import Answer
from evomerge.scoring.greedy import decode, decodes_greedily
from evomerge.scoring.logits import sliding_window
from evomerge.scoring.rows import Prompt
from evomerge.scoring.trunks import Trunks
from tests.families import FAMILIES, VOCABULARY

WINDOW = {"sliding_window": 6}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_tied": ("llama_tied", {}),
    "llama_eager": ("llama", {"_attn_implementation": "eager"}),
    "mistral": ("mistral", WINDOW),
    "gemma2": ("gemma2", {**WINDOW, "initializer_range": 0.1}),
    "gemma3": ("gemma3_text", {**WINDOW, "initializer_range": 0.1}),
    "qwen2": ("qwen2", {}),
    "gpt2": ("gpt2", {}),
    "gpt_oss": ("gpt_oss", WINDOW),
    "deepseek_v3": ("deepseek_v3", {}),
}
"""Family, and what is changed in its configuration."""


def make(name: str) -> PreTrainedModel:
    """Of random weights so large that the next token depends on those before."""
    family, changes = MODELS[name]
    config = FAMILIES[family]()
    config.initializer_range = 0.4
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def make_prompts(lengths: Sequence[int]) -> list[list[int]]:
    numbers = random.Random(0)
    return [[numbers.randrange(5, VOCABULARY) for _ in range(length)] for length in lengths]


MIXED = make_prompts([3, 24, 1, 9, 24, 17, 2, 12, 12, 5, 20, 8, 1])


def generated(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], new: int
) -> list[tuple[int, ...]]:
    """What generate says after each prompt, alone, with no end token."""
    found = []
    for prompt in prompts:
        output: Any = model.generate(  # type: ignore[operator]
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=new,
            eos_token_id=VOCABULARY,  # which no model says
            pad_token_id=0,
        )
        found.append(tuple(output[0, len(prompt) :].tolist()))
    return found


def ended(tokens: tuple[int, ...], ends: AbstractSet[int]) -> tuple[int, ...]:
    """Up to and with the first end token."""
    return tokens[: next((n for n, token in enumerate(tokens, 1) if token in ends), len(tokens))]


def varied_end(answers: Sequence[tuple[int, ...]]) -> frozenset[int]:
    """An end token at which some answers end, at many different lengths, and others do not."""

    def lengths(end: int) -> int:
        cut = [len(ended(tokens, {end})) for tokens in answers]
        return len(set(cut)) if any(end not in tokens for tokens in answers) else 0

    return frozenset({max(range(VOCABULARY), key=lengths)})


def unshared(prompts: Sequence[Sequence[int]]) -> list[Prompt]:
    """Prompts that share nothing."""
    return [Prompt(tokens=tuple(prompt)) for prompt in prompts]


def make_trunks(model: PreTrainedModel) -> Trunks:
    return Trunks(model, tokens=100, held=1000)


def decoded(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    slots: int,
    new: int,
    ends: AbstractSet[int] = frozenset(),
) -> list[Answer]:
    return decode(
        model,
        unshared(prompts),
        make_trunks(model),
        slots=slots,
        tokens=100,
        max_new_tokens=new,
        end_tokens=ends,
        stopped=lambda answers: [False] * len(answers),
    )


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_generate_whatever_the_slots(name: str) -> None:
    model = make(name)
    assert decodes_greedily(model)
    whole = generated(model, MIXED, 40)
    ends = varied_end(whole)
    expected = [ended(tokens, ends) for tokens in whole]
    # Worth something only where the answers depend on the prompts, and end early and late.
    assert len(set(whole)) > 8
    assert len({len(tokens) for tokens in expected}) > 3
    for slots in (1, 3, 5, 100):
        answers = decoded(model, MIXED, slots=slots, new=40, ends=ends)
        assert [answer.tokens for answer in answers] == expected
        assert [answer.cut_off for answer in answers] == [
            tokens[-1] not in ends for tokens in expected
        ]


@pytest.mark.parametrize("name", ["llama", "llama_tied", "qwen2", "gpt2", "deepseek_v3"])
def test_equal_to_generate_with_trunks_read_once(name: str) -> None:
    """Two trunks, and prompts without one; rests of other lengths, one of a single token."""
    model = make(name)
    assert sliding_window(model) is None
    first, second, rest = make_prompts([15, 9, 4])
    rests = [*make_prompts([7, 1, 4, 6, 2, 5]), rest]
    prompts = [(*trunk, *rest) for rest in rests for trunk in (first, second)] + MIXED[:3]
    shared = [Prompt(tokens=tuple(prompt), trunk=0) for prompt in prompts]
    shared = [
        replace(prompt, trunk=next((len(t) for t in (first, second) if begins(prompt, t)), 0))
        for prompt in shared
    ]
    assert {prompt.trunk for prompt in shared} == {15, 9, 0}
    expected = generated(model, prompts, 20)
    read: list[int] = []
    handle = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, arguments: read.append(arguments[0].numel())
    )
    for slots in (1, 4, 100):
        read.clear()
        answers = decode(
            model,
            shared,
            make_trunks(model),
            slots=slots,
            tokens=100,
            max_new_tokens=20,
            end_tokens=frozenset(),
            stopped=lambda growing: [False] * len(growing),
        )
        assert [answer.tokens for answer in answers] == expected
        if slots == 1:  # then nothing is padded
            rests_read = sum(len(prompt.rest) for prompt in shared)
            assert sum(read) == 15 + 9 + rests_read + 19 * len(prompts)
    handle.remove()


def begins(prompt: Prompt, trunk: Sequence[int]) -> bool:
    return prompt.tokens[: len(trunk)] == tuple(trunk) and len(prompt.tokens) > len(trunk)


def test_a_row_that_ended_reads_no_position_beyond_the_last() -> None:
    """It still takes part where few rows have ended; GPT-2 knows 64 positions."""
    model = make("gpt2")
    prompts = make_prompts([24] + [23] * 7 + [22] * 7)
    expected = generated(model, prompts, 40)
    short = {tokens[:5] for tokens in expected[1:8]}
    assert not short & {expected[place][:5] for place in (0, *range(8, 15))}
    answers = decode(
        model,
        unshared(prompts),
        make_trunks(model),
        slots=8,
        tokens=1000,
        max_new_tokens=40,
        end_tokens=frozenset(),
        stopped=lambda growing: [tuple(answer) in short for answer in growing],
    )
    cut = [5 if 1 <= place < 8 else 40 for place in range(15)]
    assert [answer.tokens for answer in answers] == [
        tokens[:length] for tokens, length in zip(expected, cut, strict=True)
    ]


def test_one_new_token() -> None:
    model = make("llama")
    answers = decoded(model, MIXED, slots=4, new=1)
    assert [answer.tokens for answer in answers] == generated(model, MIXED, 1)
    assert all(answer.cut_off for answer in answers)


def test_all_end_at_their_first_token() -> None:
    model = make("llama")
    firsts = frozenset(token for (token,) in generated(model, MIXED, 1))
    answers = decoded(model, MIXED, slots=4, new=20, ends=firsts)
    assert [answer.tokens for answer in answers] == generated(model, MIXED, 1)
    assert not any(answer.cut_off for answer in answers)


def test_no_prompts() -> None:
    assert decoded(make("llama"), [], slots=4, new=3) == []


def test_an_answer_ends_where_it_is_stopped() -> None:
    model = make("llama")
    whole = generated(model, MIXED, 20)

    def stops(tokens: Sequence[int]) -> bool:
        return sum(tokens) % 23 == 0

    answers = decode(
        model,
        unshared(MIXED),
        make_trunks(model),
        slots=4,
        tokens=1000,
        max_new_tokens=20,
        end_tokens=frozenset(),
        stopped=lambda growing: [stops(tokens) for tokens in growing],
    )
    for answer, tokens in zip(answers, whole, strict=True):
        length = next((n for n in range(1, 21) if stops(tokens[:n])), 20)
        assert answer.tokens == tokens[:length]
        assert answer.cut_off is not stops(tokens[:length])
    assert len({answer.cut_off for answer in answers}) == 2


def test_few_passes_are_spent_on_answers_that_have_ended() -> None:
    """One long answer among short ones does not make them wait."""
    model = make("llama")
    tokens = 0

    def count(_: object, __: object, inputs: dict[str, torch.Tensor]) -> None:
        nonlocal tokens
        tokens += inputs["input_ids"].numel()

    model.register_forward_pre_hook(count, with_kwargs=True)
    prompts = make_prompts([10] * 40)
    ends = varied_end(generated(model, prompts, 40))
    tokens = 0
    answers = decoded(model, prompts, slots=8, new=40, ends=ends)
    lengths = [len(answer.tokens) for answer in answers]
    needed = sum(10 + length for length in lengths)
    batches = sum(8 * (10 + max(lengths[start : start + 8])) for start in range(0, 40, 8))
    assert needed < 0.75 * batches
    assert tokens < 1.2 * needed


def test_nan_fails_the_candidate() -> None:
    model = make("llama")
    model.get_parameter("model.layers.1.mlp.down_proj.weight").data.fill_(math.nan)
    with pytest.raises(CandidateError, match="the model's logits are not numbers"):
        decoded(model, MIXED, slots=4, new=3)

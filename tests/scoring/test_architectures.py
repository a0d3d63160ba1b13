"""Equal to stock lm-eval whatever the architecture, with beginnings shared or, where the model
cannot go on from them, read whole."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
)

from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.forward_pass import prepare_pass, run_pass
from evomerge.scoring.harness import Harness
from evomerge.scoring.likelihood import Limits, Pair, plan_passes
from evomerge.scoring.logits import sliding_window, why_nothing_is_shared
from evomerge.scoring.scorer import score_blocks
from evomerge.scoring.tasks import TaskRequest
from evomerge.scoring.trunks import Trunks
from tests.families import FAMILIES, VOCABULARY, make_model

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 160,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TYPES = ["sliding_attention", "full_attention"]
CONFIGS = {
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral, window 24": MistralConfig(**SIZES, sliding_window=24),
    "mistral, window 100": MistralConfig(**SIZES, sliding_window=100),
    "gemma2": Gemma2Config(**SIZES, sliding_window=24, layer_types=TYPES),
    "gemma3": Gemma3TextConfig(**SIZES, sliding_window=32, layer_types=TYPES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "olmo2": Olmo2Config(**SIZES),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "gpt2": GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=160),
    "llama, longrope": LlamaConfig(
        **SIZES,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    ),
    "mamba": MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, state_size=4),
}
WHOLE = ("mamba", "llama, longrope")
TASKS = ("shots", "letter", "cloze", "text", "answer")


@pytest.fixture(scope="module")
def tasks(folder: Path, add_task: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tasks of `folder`, and one whose examples are the same for every question."""
    rows = [json.loads(line) for line in (folder / "choice.jsonl").read_text().splitlines()]
    add_task(
        folder,
        "shots",
        rows,
        doc_to_text="{{question}}",
        target_delimiter="",
        output_type="multiple_choice",
        doc_to_choice="choices",
        doc_to_target="gold",
        num_fewshot=4,
        fewshot_split="test",
        fewshot_config={"sampler": "first_n"},
        metric_list=[{"metric": "acc"}],
    )
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_log_likelihoods_and_answers_equal_stock(name: str, tasks: Path, tokenizer: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # answers that are sure of something
    requests = [TaskRequest(name=task, folder=tasks) for task in TASKS]
    harness = Harness(requests, tokenizer, budget=BatchBudget(512), max_length=160)
    documents = {task: range(12) for task in TASKS}
    card = score_blocks(harness, model, [documents])
    assert bool(card.remarks) is (name in WHOLE)
    language_model = HFLM(
        pretrained=model, tokenizer=tokenizer, softmax_dtype="float32", batch_size=4, max_length=160
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tasks)
        patch.setenv("DISABLE_MULTIPROC", "1")
        result = simple_evaluate(
            model=language_model,
            tasks=list(TASKS),
            samples={task: list(range(12)) for task in TASKS},
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            bootstrap_iters=0,
        )
    for task in TASKS:
        theirs = {row["doc_id"]: row["resps"] for row in result["samples"][task]}
        # Stock lm-eval draws other random examples for a subset; these tasks have none or fixed.
        for number in range(12):
            document = harness._tasks[task].documents[number]
            for own, their in zip(document.requests, theirs[number], strict=True):
                ours, stock = own.resps[0], their[0]
                if isinstance(ours, str):
                    assert ours == stock
                elif isinstance(ours, tuple):
                    assert ours[0] == pytest.approx(stock[0], abs=1e-3)
                    assert ours[1] == stock[1]
                else:
                    assert ours == pytest.approx(stock, abs=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_shared_changes_no_log_likelihood(name: str) -> None:
    """Every family: trunks, beginnings and rows against each text read whole and alone."""
    model = make_model(name, seed=1)
    window = sliding_window(model)
    generator = random.Random(0)
    examples = [generator.randrange(3, VOCABULARY) for _ in range(20)]
    pairs: list[Pair] = []
    for question in range(8):
        length = generator.randrange(4, 12)
        context = [*examples, *(generator.randrange(3, VOCABULARY) for _ in range(length))]
        answers = [[generator.randrange(3, VOCABULARY) for _ in range(3)] for _ in range(3)]
        pairs += [(context, answer[: 1 + question % 3]) for answer in answers]
    share = why_nothing_is_shared(model) is None
    limits = Limits(tokens=256, held=2048, logits=64, window=window)
    shared = plan_passes(pairs, max_length=60, limits=limits, share=share)
    groups = [group for batch in shared for group in batch]
    assert any(group.beginning for group in groups) is share
    if window is None:
        assert all(group.trunk == tuple(examples) for group in groups) is share
    alone = Limits(tokens=1, held=1, logits=1)
    whole = plan_passes(pairs, max_length=60, limits=alone, share=False)
    assert len(whole) == len({tuple(c + a[:-1]) for c, a in pairs})
    # MiniMax's linear attention works in blocks: its logits depend on padding that follows.
    tolerance = 1e-2 if name == "minimax" else 1e-4
    assert scores(model, shared, pairs) == pytest.approx(scores(model, whole, pairs), abs=tolerance)


@torch.no_grad()
def scores(model: Any, plan: Any, pairs: list[Pair]) -> dict[int, float]:
    trunks, found = Trunks(model, tokens=256, held=2048), {}
    for groups in plan:
        batch = prepare_pass(groups, pairs, torch.device("cpu"))
        trunks.read([trunk for trunk in batch.trunks if trunk], [])
        found |= dict(zip(batch.numbers, run_pass(model, batch, trunks)[0].tolist(), strict=True))
    return found


def test_examples_are_read_once_per_candidate(tasks: Path, tokenizer: Any, model: Any) -> None:
    """In all blocks together; and again for another candidate."""
    harness = Harness([TaskRequest(name="shots", folder=tasks)], tokenizer, budget=BatchBudget(512))
    read: list[int] = []
    model.model.layers[0].register_forward_pre_hook(
        lambda _, arguments: read.append(arguments[0].shape[0] * arguments[0].shape[1])
    )
    blocks = [{"shots": range(start, start + 4)} for start in range(4, 16, 4)]
    score_blocks(harness, model, blocks[:1])
    first = sum(read)
    read.clear()
    score_blocks(harness, model, blocks)
    three = sum(read)
    context = harness._tasks["shots"].documents[5].requests[0].args[0]
    examples = len(context) - len("10+3=")
    assert three < 3 * first - 1.5 * examples
    read.clear()
    score_blocks(harness, model, blocks)
    assert sum(read) == three


def test_less_memory_halves_the_budget_and_is_remarked(
    tasks: Path, tokenizer: Any, model: Any
) -> None:
    budget = BatchBudget(1024)
    requests = [TaskRequest(name=name, folder=tasks) for name in ("shots", "answer")]
    harness = Harness(requests, tokenizer, budget=budget)
    documents = {name: range(12) for name in harness.tasks}
    expected = score_blocks(harness, model, [documents])
    assert expected.remarks == ()

    def exhaust(_: Any, arguments: Any) -> None:
        if arguments[0].shape[0] * arguments[0].shape[1] > 130:
            raise torch.OutOfMemoryError("tried to allocate")

    handle = model.model.layers[0].register_forward_pre_hook(exhaust)
    card = score_blocks(harness, model, [documents])
    handle.remove()
    assert budget.tokens == 128
    assert card.remarks == tuple(
        f"out of memory with {tokens} tokens in a forward pass: {tokens // 2} from here"
        for tokens in (1024, 512, 256)
    )
    for name in harness.tasks:
        for metric, values in expected.per_document[name].values.items():
            assert card.per_document[name].values[metric] == pytest.approx(values, abs=1e-5)
    assert score_blocks(harness, model, [documents]).remarks == ()


def test_the_budget_is_found_once(model: Any) -> None:
    budget = BatchBudget()
    with pytest.raises(ValueError, match="not known before a model is there"):
        _ = budget.tokens
    budget.settle(model)
    assert budget.tokens == 2048  # a model this small leaves room for the most
    budget.halve()
    budget.settle(model)
    assert budget.tokens == 1024

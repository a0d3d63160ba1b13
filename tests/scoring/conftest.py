"""A tiny Llama that has learned a little, its tokenizer, and local tasks of every kind."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for turn in messages %}<{{ turn['role'][0] }}>{{ turn['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")


def pytest_configure() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data sets go where the tests' other files go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character."""
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: place for place, token in enumerate(specials + characters)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )


def _examples() -> list[tuple[str, str]]:
    """(question, answer): sums, and Greek letters spelt backwards."""
    sums = [(f"{a}+{b}=", str(a + b)) for a in range(20) for b in range(5)]
    return sums + [(f"rev {word}:", word[::-1]) for word in GREEK]


@pytest.fixture(scope="session")
def trained(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Right on some of the examples and wrong on others; ends its answers."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=160,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    rows = [tokenizer(f"{question}{answer}</s>").input_ids for question, answer in _examples()]
    width = max(len(row) for row in rows)
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(100):
        optimizer.zero_grad()
        model(tokens, labels=tokens.masked_fill(tokens == 0, -100)).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture
def model(trained: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy that a test may change."""
    copy = LlamaForCausalLM(trained.config)
    copy.load_state_dict(trained.state_dict())
    return copy.eval()


AddTask = Callable[..., Path]


@pytest.fixture(scope="session")
def add_task() -> AddTask:
    """Writes a task's YAML and JSONL files; its data_files are relative to the folder."""

    def add(folder: Path, name: str, documents: list[dict[str, Any]], **settings: Any) -> Path:
        folder.mkdir(exist_ok=True)
        lines = "".join(json.dumps(document) + "\n" for document in documents)
        (folder / f"{name}.jsonl").write_text(lines)
        content = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
            "test_split": "test",
            "metadata": {"version": 1.0},
            **settings,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
        return folder

    return add


def _metrics(**higher_is_better: bool) -> list[dict[str, Any]]:
    return [
        {"metric": name, "aggregation": "mean", "higher_is_better": higher}
        for name, higher in higher_is_better.items()
    ]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, add_task: AddTask) -> Path:
    """Tasks: choice, letter (choices of one token), cloze, text, answer, counted; the tag both and
    the group pair, each of choice and letter."""
    folder = tmp_path_factory.mktemp("tasks")
    generator = random.Random(0)
    rows = [{"question": question, "answer": answer} for question, answer in _examples()][::3]
    for row in rows:
        others = [r["answer"] for r in generator.sample(rows, 8) if r["answer"] != row["answer"]]
        row["choices"] = [row["answer"], *others[:3]]
        generator.shuffle(row["choices"])
        row["gold"] = row["choices"].index(row["answer"])
    ask = {"doc_to_text": "{{question}}", "target_delimiter": ""}
    accuracies = _metrics(acc=True, acc_norm=True)
    choice = {
        **ask,
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": accuracies,
    }
    add_task(folder, "choice", rows, **choice, num_fewshot=2, fewshot_split="test", tag="both")
    letters = {**choice, "doc_to_choice": ["0", "1", "2", "3"]}
    letters["metric_list"] = [*accuracies, {"metric": "mcc"}, {"metric": "brier_score"}]
    add_task(folder, "letter", rows, **letters, tag="both")
    cloze = {**ask, "output_type": "loglikelihood", "doc_to_target": "answer"}
    add_task(
        folder, "cloze", rows, **cloze, metric_list=[{"metric": "acc"}, {"metric": "perplexity"}]
    )
    texts = [
        {"text": " ".join(r["question"] + r["answer"] for r in rows[i : i + 20])} for i in range(14)
    ]
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text"}
    names = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    add_task(folder, "text", texts, **rolling, metric_list=[{"metric": name} for name in names])
    answer = {
        **ask,
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "metric_list": _metrics(exact_match=True),
        "generation_kwargs": {"until": ["\n", "st"], "do_sample": False, "max_gen_toks": 12},
    }
    add_task(folder, "answer", rows, **answer)
    first = {"function": "take_first"}
    number = {"function": "regex", "regex_pattern": "([0-9])"}
    add_task(
        folder,
        "counted",
        rows,
        **{**answer, "doc_to_text": "{{question}}\n"},
        num_fewshot=1,
        fewshot_split="test",
        filter_list=[
            {"name": "digit", "filter": [number, first]},
            {"name": "whole", "filter": [first]},
        ],
    )
    group = {
        "group": "pair",
        "task": ["choice", "letter"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (folder / "pair.yaml").write_text(yaml.safe_dump(group))
    return folder

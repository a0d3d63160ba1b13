"""Valid inputs, small."""

import json
import struct
from pathlib import Path
from typing import Any

QUICKSTART = Path(__file__).parent.parent.parent / "configs" / "quickstart"
BASE = QUICKSTART / "models" / "base"


def safetensors(header: Any, data: bytes, length: int | None = None) -> bytes:
    """A file of a header and what follows; length: what it says of the header's."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


TENSORS: dict[str, tuple[str, list[int]]] = {
    "model.embed_tokens.weight": ("F32", [4, 2]),
    "model.layers.0.mlp.up_proj.weight": ("BF16", [2, 2]),
    "model.norm.weight": ("F16", [2]),
}
_SIZES = {"F32": 4, "BF16": 2, "F16": 2}


def header_of(tensors: dict[str, tuple[str, list[int]]]) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file with these tensors, and zeros for them."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (kind, shape) in tensors.items():
        start, count = end, _SIZES[kind]
        for length in shape:
            count *= length
        end = start + count
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    return header, bytes(end)


CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2,
    "num_hidden_layers": 1,
    "vocab_size": 4,
    "torch_dtype": "float32",
    "tie_word_embeddings": True,
}
INDEX: dict[str, Any] = {
    "metadata": {"total_size": 44},
    "weight_map": dict.fromkeys(TENSORS, "model-00001-of-00001.safetensors"),
}
ADAPTER: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "target_modules": ["up_proj"],
    "alpha_pattern": {"mlp.up_proj": 8, r".*\.1\.up_proj": 2},
    "rank_pattern": {},
}
FACTORS: dict[str, tuple[str, list[int]]] = {
    "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": ("F32", [2, 2]),
    "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight": ("F32", [2, 2]),
    "base_model.model.model.norm.weight": ("F32", [2]),
}

RECIPE: dict[str, Any] = {
    "base": {"path": "models/base", "sha256": "00"},
    "sources": {"a": {"path": "models/a", "revision": "main"}, "b": {"path": "models/b"}},
    "seed": 3,
    "dtype": "float32",
    "vocabulary": "base",
    "calibration": {"file": "text.txt", "tokens": 100, "length": 10},
    "rules": [
        {
            "layers": "0-2,7",
            "parts": ["attention", "mlp"],
            "method": "ties",
            "sources": ["a", "b"],
            "parameters": {"weight": {"a": 0.1, "b": 1e-7}, "lambda": 1.0, "normalize": True},
            "lines": {"alpha": 0.5, "beta": 1.0},
        },
        {"method": "passthrough", "sources": ["base"], "tensors": ["model.norm.weight"]},
    ],
    "stack": [
        {"source": "a", "layers": "0-2,1"},
        {"source": "merged", "layers": [2], "scale": 0.5},
    ],
}
MERGEKIT: tuple[dict[str, Any], ...] = (
    {
        "merge_method": "dare_ties",
        "base_model": "base",
        "models": [
            {"model": "a", "parameters": {"weight": [0.1, 0.5, 1], "density": 0.5}},
            {
                "model": "b",
                "parameters": {"weight": [{"filter": "mlp", "value": 0.3}, {"value": 1}]},
            },
        ],
        "parameters": {"normalize": True, "int8_mask": True, "lambda": 1.0},
        "dtype": "float32",
        "tokenizer_source": "union",
    },
    {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "base", "layer_range": [0, 1]}]},
            {"sources": [{"model": "a", "layer_range": [0, 1], "parameters": {"scale": 0.5}}]},
        ],
        "dtype": "bfloat16",
    },
    {
        "merge_method": "slerp",
        "base_model": "base",
        "models": [{"model": "base"}, {"model": {"model": {"path": "a", "revision": "x"}}}],
        "parameters": {"t": [0, 0.5, {"filter": "mlp", "value": 1}]},
        "tokenizer": {"source": "base"},
        "modules": {},
        "name": "first",
    },
)
EVOLVE: dict[str, Any] = {
    "genome": {
        "models": ["a", "b"],
        "base_model": "base",
        "merge_method": "dare_ties",
        "layer_granularity": 1,
        "filters": ["mlp", "self_attn"],
        "normalize": True,
        "smooth": False,
    },
    "tasks": [{"name": "gsm8k", "weight": 1.0, "metric": "exact_match,strict"}, {"name": "arc"}],
    "limit": 100,
    "num_fewshot": 4,
}
SEARCH: dict[str, Any] = {
    "base": "models/base",
    "sources": {"a": "models/a@main", "b": {"path": "models/b", "revision": "x"}},
    "tasks": {
        "capital": {"folder": "tasks", "limit": 16, "metric": "acc", "weight": 2, "num_fewshot": 0},
        "text": {"scorer": "bits_per_byte", "file": "text.txt"},
        "own": {"scorer": "own:score", "documents": "documents.jsonl", "higher_is_better": True},
        "gsm8k": None,
    },
    "calibration": {"file": "text.txt", "tokens": 500},
    "space": {
        "methods": ["task_arithmetic", "ties"],
        "depth": {"blocks": 2},
        "parts": [["attention", "norm"], ["mlp"]],
        "ends": "separate",
        "ranges": {"weight": [0, 1.5], "density": 0.5},
        "overrides": [{"layers": "0-3", "parts": ["mlp"], "ranges": {"weight": 0.5}}],
        "lines": {"alpha": [0, 1]},
        "switch_off": True,
    },
    "budget": {"trials": 10, "hours": 1.5, "until": "07:00", "documents": 1000},
    "documents": {"holdout": 0.5, "seed": 1},
    "objectives": {"x": ["capital"], "y": ["text", "own"]},
    "constraints": {"capital": {"below_base": 0.02}},
    "early_stopping": {"level": 0.05, "halving": 3, "minimum": 8, "blocks": 4},
    "guide": "gradient",
    "sampler": "auto",
    "start_from": [],
    "finalists": 3,
    "seed": 0,
    "dtype": "float32",
    "vocabulary": "union",
    "device": "cpu",
    "storage": "sqlite:///study.db",
    "notify": "https://127.0.0.1/x",
    "output": "results",
    "threads": 1,
}
TASK: dict[str, Any] = {
    "task": "own",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "own.jsonl"}},
    "test_split": "test",
    "num_fewshot": 0,
    "doc_to_text": "{{question}}",
    "target_delimiter": "",
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}
GENERATING: dict[str, Any] = {
    **{key: TASK[key] for key in ("task", "dataset_path", "dataset_kwargs", "test_split")},
    "doc_to_text": "{{question}}",
    "output_type": "generate_until",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 16},
    "filter_list": [{"name": "digit", "filter": [{"function": "regex", "regex_pattern": "[0-9]"}]}],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
DOCUMENTS: list[dict[str, Any]] = [
    {"question": f"{n} + 1 = ", "choices": ["a", "b"], "answer": n % 2} for n in range(4)
]

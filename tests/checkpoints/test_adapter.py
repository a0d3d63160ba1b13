"""LoRA adapters as sources and as results, with peft as the oracle."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from evomerge import Recipe, UserError, merge, search
from evomerge.adapting import merge_as_adapter
from evomerge.recipe import Model, Rule

FAMILY = Path(__file__).parent.parent.parent / "configs" / "quickstart" / "models"
LINEAR = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
    "saved": {"modules_to_save": ["norm"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
}


def make_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """A real PEFT adapter with random weights."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    given = {"r": 4, "lora_alpha": 6, "target_modules": LINEAR, **settings}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**given))
    generator = torch.Generator().manual_seed(len(folder.name))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.05 * noise.abs() if "magnitude" in name else 0.05 * noise)
    adapted.save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return dict(merged.state_dict())


def recipe(base: Path, method: str = "passthrough", **sources: Path) -> Recipe:
    return Recipe(
        base=Model(path=str(base)),
        sources={name: Model(path=str(path)) for name, path in sources.items()},
        rules=(Rule(method=method, sources=tuple(sources)),),
        dtype="float32",
    )


def state(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_alone_is_what_peft_merges(kind: str, tmp_path: Path) -> None:
    adapter = make_adapter(FAMILY / "base", tmp_path / kind, **KINDS[kind])
    folder = merge(recipe(FAMILY / "base", one=adapter), tmp_path / "out")
    expected, base = merged_by_peft(FAMILY / "base", adapter), state(FAMILY / "base")
    got = state(folder)
    assert any(not torch.equal(got[name], base[name]) for name in got)
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_conv1d_layers_of_gpt2(tmp_path: Path) -> None:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=40, n_positions=16)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    targets = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    for kind in ({}, {"use_dora": True}):
        adapter = make_adapter(tmp_path / "base", tmp_path / "adapter", **targets, **kind)
        folder = merge(recipe(tmp_path / "base", a=adapter), tmp_path / "out", force=True)
        expected = merged_by_peft(tmp_path / "base", adapter)
        for name, tensor in state(folder).items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_merge_of_adapters_is_one_adapter_again(tmp_path: Path) -> None:
    base = FAMILY / "base"
    one = make_adapter(base, tmp_path / "one")
    two = make_adapter(base, tmp_path / "seven", r=2)
    asked = recipe(base, "task_arithmetic", one=one, two=two)
    done = merge_as_adapter(asked, tmp_path / "both", 6)
    assert max(done.errors.values()) < 1e-5
    assert done.whole == ()
    expected = state(merge(asked, tmp_path / "full"))
    for name, tensor in merged_by_peft(base, done.folder).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5)
    poorer = merge_as_adapter(asked, tmp_path / "poorer", 3)
    assert 0.05 < max(poorer.errors.values()) < 1
    assert "largest" in (poorer.folder / "README.md").read_text()
    again = merge(recipe(base, one=done.folder), tmp_path / "again")
    for name, tensor in state(again).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_full_fine_tune_as_an_adapter_keeps_norms_and_embeddings_whole(tmp_path: Path) -> None:
    done = merge_as_adapter(recipe(FAMILY / "base", past=FAMILY / "past"), tmp_path / "out", 96)
    assert "model.embed_tokens.weight" in done.whole
    assert "model.norm.weight" in done.whole
    assert max(done.errors.values()) < 1e-4
    expected = state(FAMILY / "past")
    for name, tensor in merged_by_peft(FAMILY / "base", done.folder).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_search_takes_an_adapter_beside_a_full_source(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(FAMILY / "base", tmp_path / "adapter")
    config = small(trials=10)
    config.write_text(config.read_text().replace("sources:", f"sources:\n  lora: {adapter}"))
    outcome = search(config)
    assert outcome.verdict is not None


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_lora_is_refused(tmp_path: Path) -> None:
    adapter = make_adapter(FAMILY / "base", tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            merge(recipe(FAMILY / "base", one=adapter), tmp_path / "out")

    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "peft_type": "IA3"}))
    refused("peft_type is 'IA3'")
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    weights = adapter / "adapter_model.safetensors"
    weights.rename(adapter / "adapter_model.bin")
    refused("is pickled")


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=40, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    adapter = make_adapter(
        tmp_path / "gpt2", tmp_path / "adapter", target_modules=["c_attn"], fan_in_fan_out=True
    )
    with pytest.raises(UserError, match="which the base does not have"):
        merge(recipe(FAMILY / "base", one=adapter), tmp_path / "out")

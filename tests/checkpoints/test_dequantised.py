"""Quantised models and GGUF files are turned back once, exactly as their formats say."""

import dataclasses
import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from evomerge import Recipe, UserError, merge
from evomerge.checkpoints.dequantised import open_checkpoint
from evomerge.checkpoints.source import WEIGHTS, Checkpoint
from evomerge.files import cache_folder
from evomerge.merging.models import open_models
from evomerge.merging.workspace import Workspace
from evomerge.recipe import Model, Rule
from tests.families import VOCABULARY, make_checkpoint

BLOCK = 8
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder("dequantised")


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def save(tensors: Tensors, folder: Path) -> None:
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def make_fp8(family: str, folder: Path, seed: int = 0) -> Tensors:
    """A fine-grained fp8 checkpoint, written by hand; returns what its weights stand for."""
    make_checkpoint(family, folder, seed, torch.bfloat16)
    stored, plain = {}, {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        stored[name] = plain[name] = tensor
        if "_proj" in name and tensor.dim() == 2:
            rows, columns = (size // BLOCK for size in tensor.shape)
            blocks = tensor.float().view(rows, BLOCK, columns, BLOCK)
            scales = blocks.abs().amax((1, 3)) / 448
            whole = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            stored[name] = (tensor.float() / whole).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scales
            plain[name] = (stored[name].float() * whole).to(torch.bfloat16)
    save(stored, folder)
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    edit_config(folder, quantization_config={**fp8, "weight_block_size": [BLOCK, BLOCK]})
    return plain


def assert_holds(checkpoint: Checkpoint, expected: Tensors) -> None:
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in expected.items():
        got = checkpoint.read(name)
        if tensor.dim() > 1:  # transformers keeps some vectors in float32
            assert got.dtype == tensor.dtype, name
        assert torch.equal(got.float(), tensor.float()), name


@pytest.mark.parametrize("family", ["llama_tied", "qwen3_moe", "deepseek_v3"])
def test_fine_grained_fp8(family: str, tmp_path: Path) -> None:
    plain = make_fp8(family, tmp_path / "fp8")
    assert any(tensor.dtype == torch.float8_e4m3fn for tensor in read(tmp_path / "fp8").values())
    assert_holds(open_checkpoint(tmp_path / "fp8"), plain)


def read(folder: Path) -> Tensors:
    return load_file(folder / WEIGHTS)


def test_it_is_done_once_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_fp8("llama", tmp_path / "fp8")
    with caplog.at_level(logging.INFO):
        first = open_checkpoint(tmp_path / "fp8")
        said = len(caplog.records)
        second = open_checkpoint(tmp_path / "fp8")
    assert (said, len(caplog.records)) == (2, 2)
    assert str(first.folder) in caplog.text
    assert first.folder == second.folder
    edit_config(tmp_path / "fp8", rope_theta=5000.0)
    assert open_checkpoint(tmp_path / "fp8").folder != first.folder


def test_what_was_cut_off_is_made_again(tmp_path: Path) -> None:
    plain = make_fp8("llama", tmp_path / "fp8")
    folder = open_checkpoint(tmp_path / "fp8").folder
    (folder / "dequantised.json").unlink()
    (folder / WEIGHTS).write_bytes(b"half")
    (folder.with_name(f".{folder.name}.partial")).mkdir()
    assert_holds(open_checkpoint(tmp_path / "fp8"), plain)
    assert not list(folder.parent.glob(".*"))


def test_hash_config_and_tokenizer_are_the_originals(tmp_path: Path) -> None:
    make_fp8("llama", tmp_path / "fp8")
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    (tmp_path / "fp8" / "tokenizer_config.json").write_text('{"note": "kept"}')
    found = open_checkpoint(tmp_path / "fp8")
    assert found.files() == [tmp_path / "fp8" / WEIGHTS]
    edit_config(tmp_path / "fp8", quantization_config=None)
    save({name: t.bfloat16() for name, t in read(tmp_path / "fp8").items()}, tmp_path / "fp8")
    assert found.sha256() == Checkpoint(tmp_path / "fp8").sha256()
    del config["quantization_config"]
    assert found.config == config
    assert (found.folder / "tokenizer_config.json").read_text() == '{"note": "kept"}'


def recipe(base: Path, source: Path) -> Recipe:
    rule = Rule(method="task_arithmetic", sources=("it",), parameters={"weight": 0.5})
    return Recipe(
        base=Model(path=str(base)),
        sources={"it": Model(path=str(source))},
        rules=(rule,),
        dtype="bfloat16",
    )


def test_merging_them_is_merging_plain_copies(tmp_path: Path) -> None:
    """An fp8 base and an fp8 source: live model, written checkpoint, and pinned recipe."""
    for name, seed in (("base", 0), ("tuned", 1)):
        plain = make_fp8("qwen3_moe", tmp_path / name, seed)
        make_checkpoint("qwen3_moe", tmp_path / f"plain_{name}", 0, torch.bfloat16)
        save(plain, tmp_path / f"plain_{name}")
    asked = recipe(tmp_path / "base", tmp_path / "tuned")
    expected = merge(recipe(tmp_path / "plain_base", tmp_path / "plain_tuned"), tmp_path / "one")
    written = merge(asked, tmp_path / "two")
    assert_holds(Checkpoint(written), read(expected))
    assert "quantization_config" not in json.loads((written / "config.json").read_text())
    again = Recipe.read(written / "recipe.yaml")
    assert again.base.path == str(tmp_path / "base")
    assert again.base.sha256 == open_checkpoint(tmp_path / "base").sha256()
    merge(again, tmp_path / "three")
    workspace = Workspace(open_models(asked), dtype=torch.bfloat16, device=torch.device("cpu"))
    workspace.load(asked)
    loaded = AutoModelForCausalLM.from_pretrained(written, dtype=torch.bfloat16)
    tokens = torch.arange(VOCABULARY).view(4, -1)
    with torch.no_grad():
        assert torch.equal(workspace.model(tokens).logits, loaded(tokens).logits)


def test_microscaling_fp4(tmp_path: Path) -> None:
    """MXFP4 as gpt-oss has it: two numbers per byte, a power of two for each 32 of a row."""
    config = CONFIG_MAPPING["gpt_oss"](
        **{"vocab_size": 64, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
        **{"num_local_experts": 2, "num_experts_per_tok": 1, "max_position_embeddings": 64},
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "q")
    tensors, generator = read(tmp_path / "q"), torch.Generator().manual_seed(0)
    plain = dict(tensors)
    numbers = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    numbers = torch.cat([numbers, -numbers])
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        size = (experts, rows, columns // 32)
        blocks = torch.randint(256, (*size, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(120, 130, size, generator=generator, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        pairs = torch.stack([numbers[(blocks & 15).long()], numbers[(blocks >> 4).long()]], -1)
        values = pairs.reshape(*size, 32) * 2.0 ** (scales.float() - 127).unsqueeze(-1)
        plain[name] = values.reshape(experts, rows, columns).transpose(1, 2).bfloat16().contiguous()
    save(tensors, tmp_path / "q")
    edit_config(tmp_path / "q", quantization_config={"quant_method": "mxfp4"})
    assert_holds(open_checkpoint(tmp_path / "q"), plain)


def lose(kind: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = read(folder)
        del tensors[f"model.layers.1.mlp.up_proj.{kind}"]
        save(tensors, folder)

    return spoil


def quantised_with(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, quantization_config=settings)


REFUSED = {
    "gptq": (quantised_with(quant_method="gptq", bits=4), r"gptq.*turns back .*fp8.*not this"),
    "unknown": (quantised_with(quant_method="modelopt"), r"modelopt.*turns back .*not this"),
    "no method": (quantised_with(bits=4), r"None.*not this method"),
    "no scale": (lose("weight_scale_inv"), r"up_proj.weight is still torch.float8_e4m3fn"),
    "no settings": (lambda folder: edit_config(folder, quantization_config=None), r"type F8_E4M3"),
    "pickled": (
        lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
        r"only pickled weights",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_undone_is_refused(case: str, tmp_path: Path, cache: Path) -> None:
    spoil, message = REFUSED[case]
    make_fp8("llama", tmp_path / "fp8")
    spoil(tmp_path / "fp8")
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path / "fp8")
    assert not list(cache.glob("*/*"))


@pytest.mark.parametrize("method", ["compressed-tensors", "torchao", "bitsandbytes"])
def test_a_missing_package_is_named(method: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(method.replace("-", "_")) is not None:
        pytest.skip(f"{method} is installed")
    make_fp8("llama", tmp_path / "fp8")
    settings = {"quant_method": method, "load_in_4bit": method == "bitsandbytes"}
    edit_config(tmp_path / "fp8", quantization_config=settings)
    with pytest.raises(UserError, match=rf"not installed: pip install {method}"):
        open_checkpoint(tmp_path / "fp8")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, cache: Path) -> None:
    make_fp8("llama", tmp_path / "fp8")
    cache.parent.parent.write_text("a file where the folder would be")
    with pytest.raises(UserError, match=r"copy cannot be written: .*set XDG_CACHE_HOME"):
        open_checkpoint(tmp_path / "fp8")


LLAMA = {
    **{"vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
}
TOKENS = ["<|endoftext|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz0123456789", "th", "Ġ"]


def gguf_names(name: str) -> str:
    """llama.cpp's name of a Llama's tensor."""
    ends = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        **{f"self_attn.{p}_proj": f"attn_{p}" for p in "qkv"},
        **{"self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm"},
        **{f"mlp.{p}_proj": f"ffn_{p}" for p in ("gate", "up", "down")},
        "post_attention_layernorm": "ffn_norm",
    }
    module = name.removesuffix(".weight")
    if module in ends:
        return f"{ends[module]}.weight"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{parts[part]}.weight"


def for_llama_cpp(name: str, weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Its order of the rows of queries and keys: the halves of each head interleaved."""
    heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
    if heads is None:
        return weights
    return weights.reshape(heads, 2, -1, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)


def make_gguf(file: Path, packed: str, seed: int = 0) -> tuple[Path, Tensors]:
    """A Llama as GGUF, and beside it as a folder; returns the folder and the GGUF's weights."""
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**LLAMA))
    folder = file.with_name(f"{file.stem}_folder")
    model.save_pretrained(folder)
    kind = gguf.GGMLQuantizationType[packed]
    file.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    plain = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        weights = tensor.numpy()
        if tensor.dim() == 2:
            stored = gguf.quants.quantize(for_llama_cpp(name, weights), kind)
            writer.add_tensor(gguf_names(name), stored, raw_dtype=kind)
            # Rows stay whole, so that their order makes no difference to what they are rounded to.
            weights = gguf.quants.dequantize(gguf.quants.quantize(weights, kind), kind)
        else:
            writer.add_tensor(gguf_names(name), weights)
        plain[name] = torch.from_numpy(np.array(weights))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder, plain


@pytest.mark.parametrize(
    ("packed", "dtype"),
    [("Q8_0", torch.bfloat16), ("Q4_1", torch.bfloat16), ("F16", torch.float16)],
)
def test_a_gguf_file(packed: str, dtype: torch.dtype, tmp_path: Path) -> None:
    _, plain = make_gguf(tmp_path / "tiny.gguf", packed)
    found = open_checkpoint(tmp_path / "tiny.gguf")
    assert_holds(found, {name: tensor.to(dtype) for name, tensor in plain.items()})
    assert found.config["dtype"] == str(dtype).removeprefix("torch.")
    assert found.files() == [tmp_path / "tiny.gguf"]
    tokenizer = AutoTokenizer.from_pretrained(found.folder)
    assert tokenizer.get_vocab() == {token: number for number, token in enumerate(TOKENS)}
    assert tokenizer("that")["input_ids"][-2:] == [TOKENS.index("a"), TOKENS.index("t")]


def test_a_folder_with_one_gguf_file(tmp_path: Path) -> None:
    folder, plain = make_gguf(tmp_path / "in" / "tiny.gguf", "Q8_0")
    asked = recipe(folder, tmp_path / "in")
    found = open_models(asked).checkpoints["it"]
    assert isinstance(found, Checkpoint)
    assert_holds(found, {name: tensor.bfloat16() for name, tensor in plain.items()})
    written = merge(asked, tmp_path / "out")
    base = load_file(folder / WEIGHTS)
    for name, tensor in load_file(written / WEIGHTS).items():
        half = base[name] + 0.5 * (plain[name].bfloat16().float() - base[name])
        assert torch.equal(tensor, half.bfloat16()), name
    file = dataclasses.replace(asked, sources={"it": Model(path=str(tmp_path / "in/tiny.gguf"))})
    assert_holds(Checkpoint(merge(file, tmp_path / "out2")), load_file(written / WEIGHTS))


def test_several_gguf_files_are_refused(tmp_path: Path) -> None:
    for name in ("tiny.Q4_K.gguf", "tiny.Q8_0.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"2 GGUF files .tiny\.Q4_K\.gguf.*name the file"):
        open_checkpoint(tmp_path)


def test_a_damaged_gguf_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(UserError, match=r"tiny\.gguf: is damaged or cut off"):
        open_checkpoint(tmp_path / "tiny.gguf")

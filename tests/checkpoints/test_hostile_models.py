"""Model folders that were made to harm: each is refused with a sentence, at once."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.dequantised import open_checkpoint
from evomerge.checkpoints.gguf_header import check_header
from evomerge.checkpoints.locate import locate
from evomerge.checkpoints.source import INDEX, WEIGHTS, Checkpoint, read_json
from evomerge.checkpoints.tokenizer import copy_tokenizer, load_tokenizer, read_vocabularies
from evomerge.checkpoints.vocabulary import tokens_of
from evomerge.errors import UserError
from evomerge.merging.models import open_models
from evomerge.recipe import BASE, Model, Recipe

FAMILY = Path(__file__).parent.parent.parent / "configs" / "quickstart" / "models"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model."""
    return Path(shutil.copytree(FAMILY / "base", tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_what_never_ends_is_no_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match="no ordinary file"):
        Checkpoint(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match="no ordinary file"):
        Checkpoint(folder)


@pytest.mark.parametrize("name", ["..", "a/b", "a\\b", "a\x00b", "\u202ea", 3, "/etc/passwd"])
def test_an_index_names_files_of_its_folder(folder: Path, name: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(UserError, match="points outside the folder"):
        Checkpoint(folder)


def test_json_that_is_too_deep(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("path", ["a\x00b", "x" * 5000, "~no_such_user_at_all/x"])
def test_a_path_that_is_none(path: str) -> None:
    with pytest.raises(UserError, match="is no path"):
        locate(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "1000000000 layers, and there are 38 tensors"),
        ({"num_hidden_layers": -1}, "-1 layers"),
        ({"head_dim": 10**9}, "tells of .* weights, and the files have"),
        ({"vocab_size": "many"}, "transformers cannot load this"),
        ({"num_key_value_heads": 0}, "transformers cannot load this"),
    ],
)
def test_a_configuration_of_a_larger_model(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        open_models(Recipe(base=Model(path=str(folder)), sources={}, rules=()))


@pytest.mark.parametrize("trust", [False, True])
def test_code_of_a_model_folder_runs_only_with_trust(
    folder: Path, trust: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    code = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": "evil.T"}
    edit(folder / "config.json", model_type="evil", auto_map=code)
    tokenizer = {"AutoTokenizer": ["evil.T", None]}
    edit(folder / "tokenizer_config.json", tokenizer_class="T", auto_map=tokenizer)
    canary = tmp_path / "ran"
    (folder / "evil.py").write_text(
        f"open({str(canary)!r}, 'w').close()\nraise ImportError('so')\n"
    )
    with pytest.raises(UserError):
        open_models(
            Recipe(base=Model(path=str(folder)), sources={}, rules=()), trust_remote_code=trust
        )
    assert canary.exists() == trust
    canary.unlink(missing_ok=True)
    if not trust:
        with pytest.raises(UserError):
            load_tokenizer(folder)
        assert not canary.exists()


def test_a_token_of_a_far_number(folder: Path) -> None:
    with pytest.raises(UserError, match="'b' has number 4000000000, of 2 tokens"):
        tokens_of({"a": 0, "b": 4_000_000_000})
    words = json.loads((folder / "tokenizer.json").read_text())
    words["model"]["vocab"]["far"] = 4_000_000_000
    (folder / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(UserError, match="has number 4000000000"):
        read_vocabularies({BASE: folder})


def test_a_link_out_of_the_folder_is_not_copied(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (folder / "tokenizer_extra.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="outside the model folder"):
        copy_tokenizer(folder, tmp_path)
    cached = tmp_path / "hub" / "snapshots" / "main"
    blobs = tmp_path / "hub" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0").write_text("words")
    cached.mkdir(parents=True)
    (cached / "tokenizer.model").symlink_to(blobs / "0")
    copy_tokenizer(cached, tmp_path)
    assert (tmp_path / "tokenizer.model").read_text() == "words"


def adapter(folder: Path, settings: dict[str, Any], **shapes: tuple[int, ...]) -> None:
    """An adapter of the quickstart's base; shapes: of A and B."""
    folder.mkdir()
    prefix = "base_model.model.model.layers.0.mlp.up_proj"
    sizes = {"lora_A": (2, 96), "lora_B": (256, 2), **shapes}
    tensors = {f"{prefix}.{name}.weight": torch.zeros(size) for name, size in sizes.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))


@pytest.mark.parametrize(
    ("settings", "shapes", "message"),
    [
        ({"alpha_pattern": {"(a+)+": 8}}, {}, "repeats groups"),
        ({"alpha_pattern": {".*" * 9: 8}}, {}, "more than 2 times"),
        ({"alpha_pattern": {"(": 8}}, {}, "is no regular expression"),
        ({"alpha_pattern": {"up_proj": "8"}}, {}, "'8'; expected a number"),
        ({"alpha_pattern": [8]}, {}, "expected a mapping of patterns"),
        ({"lora_alpha": "x"}, {}, "lora_alpha: 'x'; expected a number"),
        ({}, {"lora_A": (0, 96)}, r"expected \[r, in\] and \[out, r\]"),
        ({}, {"lora_A": (96,)}, r"expected \[r, in\] and \[out, r\]"),
        ({}, {"lora_B": (256, 3)}, r"expected \[r, in\] and \[out, r\]"),
        ({}, {"lora_magnitude_vector": (3,)}, "expected one number for each of the rows"),
    ],
)
def test_an_adapter_that_cannot_be_one(
    tmp_path: Path, settings: dict[str, Any], shapes: dict[str, Any], message: str
) -> None:
    adapter(tmp_path / "adapter", settings, **shapes)
    with pytest.raises(UserError, match=message):
        Adapter(tmp_path / "adapter", Checkpoint(FAMILY / "base"))


def gguf(*keys: bytes, tensors: int = 1, count: int | None = None) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, len(keys) if count is None else count)
    tensor = struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 4, 0, 0)
    return head + b"".join(keys) + tensor * min(tensors, 1) + bytes(64)


def key(kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"k" + struct.pack("<I", kind) + value


Spoil = Callable[[], bytes]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "reaches beyond its end"),
        (b"PK\x03\x04" + bytes(60), "does not begin with GGUF"),
        (gguf(tensors=2**60), "do not fit into the file"),
        (gguf(count=2**60), "do not fit into the file"),
        (gguf(key(8, struct.pack("<Q", 2**62))), "reaches beyond its end"),
        (gguf(key(9, struct.pack("<IQ", 6, 2**61))), "reaches beyond its end"),
        (gguf(key(9, struct.pack("<IQ", 8, 2**61))), "does not fit into the file"),
        (gguf(key(9, struct.pack("<IQ", 9, 1) * 9)), "a value of type 9"),
        (gguf(key(77, b"")), "a value of type 77"),
    ],
)
def test_a_gguf_header_that_reaches_beyond_its_file(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(UserError, match=message):
        check_header(tmp_path / "m.gguf")
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_sound_gguf_header_passes(tmp_path: Path) -> None:
    values = (key(8, struct.pack("<Q", 1) + b"v"), key(9, struct.pack("<IQff", 6, 2, 1, 2)))
    (tmp_path / "m.gguf").write_bytes(gguf(*values, key(4, bytes(4))))
    check_header(tmp_path / "m.gguf")

"""Doors of model folders: weights, their index, settings, adapters, tokenizers, GGUF."""

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

from evomerge.checkpoints.adapter import Adapter, is_adapter
from evomerge.checkpoints.dequantised import open_checkpoint
from evomerge.checkpoints.source import Checkpoint
from evomerge.checkpoints.tokenizer import read_vocabularies
from evomerge.merging.models import open_models
from evomerge.recipe import BASE as BASE_NAME
from evomerge.recipe import Model, Recipe
from tests.fuzz.judging import Files, Link, Pipe
from tests.fuzz.mutating import spoil, spoil_bytes, written
from tests.fuzz.seeds import ADAPTER, BASE, CONFIG, FACTORS, INDEX, TENSORS, header_of, safetensors

QUANTISED = ("gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors", "", 3, None)


def text(tree: Any) -> bytes:
    """As a file holds it."""
    return written(tree).encode("utf-8", "surrogatepass")


def weights(random: Random, tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    """A safetensors file whose header, length or bytes are spoilt."""
    header, data = header_of(tensors)
    match random.randrange(5):
        case 0:
            return spoil_bytes(random, safetensors(header, data))
        case 1:
            length = random.choice((0, 1, 7, 2**31, 2**60, 2**63, 2**64 - 1, 100_000_000))
            return safetensors(header, data, length)
        case 2:
            name = random.choice(list(tensors))
            start, end = header[name]["data_offsets"]
            shape = random.choice(([2**32, 2**32], [2**63, 2], [0], [-1, -1], [2**31], [1] * 300))
            offsets = random.choice(([0, 2**63], [end, start], [start + 1, end + 1], [-1, end]))
            key, value = random.choice((("shape", shape), ("data_offsets", offsets)))
            header[name][key] = value
            return safetensors(header, data)
        case 3:
            return safetensors(text(spoil(random, header)), data * random.choice((1, 1, 0, 2)))
    kind = random.choice(("F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "f32", "", "X"))
    header[random.choice(list(tensors))]["dtype"] = kind
    return safetensors(header, data)


def sound(tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    """As it should be."""
    return safetensors(*header_of(tensors))


class Checkpoints:
    """Header, index and config.json of a model folder."""

    name = "checkpoints"

    def make(self, random: Random) -> Files:
        files: dict[str, Any] = {"config.json": text(CONFIG), "model.safetensors": sound(TENSORS)}
        match random.randrange(8):
            case 0 | 1 | 2:
                files["model.safetensors"] = weights(random, TENSORS)
            case 3 | 4:
                files["model.safetensors.index.json"] = text(spoil(random, INDEX))
                files["model-00001-of-00001.safetensors"] = files.pop("model.safetensors")
            case 5:
                files["config.json"] = text(spoil(random, CONFIG))
            case 6:
                name = random.choice(list(files))
                content = spoil_bytes(random, files[name])
                hole = random.choice(
                    ("/dev/zero", "..", "model.safetensors", "/proc/self/mem", "x")
                )
                files[name] = random.choice((content, Link(hole), Pipe(), b"", b"\xff" * 100))
            case 7:
                settings = {"quant_method": random.choice(QUANTISED), "bits": 4}
                files["config.json"] = text(
                    CONFIG | {"quantization_config": spoil(random, settings)}
                )
                files.pop(random.choice((*files, "none")), None)
        return files

    def enter(self, folder: Path) -> None:
        checkpoint = open_checkpoint(folder)
        for name in list(checkpoint.tensors)[:4]:
            checkpoint.read(name)


class Adapters:
    """adapter_config.json and the factors of a LoRA adapter."""

    name = "adapters"

    def make(self, random: Random) -> Files:
        files: dict[str, Any] = {
            "base/config.json": text(CONFIG),
            "base/model.safetensors": _SOUND,
            "adapter_config.json": text(ADAPTER),
            "adapter_model.safetensors": sound(FACTORS),
        }
        match random.randrange(4):
            case 0:
                files["adapter_config.json"] = text(spoil(random, ADAPTER))
            case 1:
                files["adapter_model.safetensors"] = weights(random, FACTORS)
            case 2:
                shapes = ([2], [], [2, 2, 2], [0, 2], [2, 0], [1, 2], [2, 3], [0], [3, 2])
                names = {n: (k, random.choice((s, *shapes))) for n, (k, s) in FACTORS.items()}
                for old in list(names):
                    if random.random() < 0.3:
                        kinds = ("lora_embedding_A", "lora_magnitude_vector", "lora_B", "x", "")
                        new = old.replace("lora_A", random.choice(kinds))
                        names[new] = names.pop(old)
                files["adapter_model.safetensors"] = sound(names)
            case 3:
                patterns = (
                    "(a+)+$",
                    "(.*.*.*)*x",
                    "(",
                    "[",
                    "(?P<a>b)(?P=a)",
                    ".*" * 30,
                    "",
                    "a{9,}",
                )
                pattern = {random.choice(patterns): random.choice((8, "8", None, [], -1, 0, "x"))}
                files["adapter_config.json"] = text({**ADAPTER, "alpha_pattern": pattern})
        return files

    def enter(self, folder: Path) -> None:
        if not is_adapter(folder):
            return
        adapter = Adapter(folder, Checkpoint(folder / "base"))
        for name in list(adapter.tensors)[:4]:
            adapter.read(name)


_SOUND = sound(TENSORS)


class Gguf:
    """A GGUF file's header."""

    name = "gguf"

    def make(self, random: Random) -> Files:
        return {"model.gguf": spoil_bytes(random, _gguf(random))}

    def enter(self, folder: Path) -> None:
        open_checkpoint(folder / "model.gguf")


def _gguf(random: Random) -> bytes:
    def word(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    count = random.choice((2, 3, 2**20, 2**40, 2**63))
    keys = (
        word("general.architecture") + struct.pack("<I", 8) + word("llama"),
        word("llama.block_count") + struct.pack("<II", 4, random.choice((1, 2**31))),
        word("tokenizer.ggml.scores")
        + struct.pack("<IIQ", 9, random.choice((6, 6, 8, 9, 77)), count)
        + struct.pack("<ff", 0.5, 1.5),
    )
    tensor = word("token_embd.weight") + struct.pack("<I", 2) + struct.pack("<QQIQ", 4, 4, 0, 0)
    numbers = (random.choice((1, 1, 2**40)), random.choice((3, 3, 3, 2**50)))
    return b"GGUF" + struct.pack("<IQQ", 3, *numbers) + b"".join(keys) + tensor + bytes(128)


class Models:
    """A whole model folder, as far as a search opens it: config.json above all."""

    name = "models"

    def __init__(self) -> None:
        self._config = json.loads((BASE / "config.json").read_text())
        self._files = {
            path.name: path.read_bytes() for path in BASE.iterdir() if path.name != "config.json"
        }

    def make(self, random: Random) -> Files:
        files: dict[str, Any] = {**self._files, "config.json": text(spoil(random, self._config))}
        if random.random() < 0.2:
            numbers = (0, -1, 10**6, 10**9, 2**63, 10**30, 1.5, "4", None)
            keys = [key for key, own in self._config.items() if isinstance(own, int)]
            changed = {random.choice(keys): random.choice(numbers)}
            files["config.json"] = text({**self._config, **changed})
        if random.random() < 0.1:
            code = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
            files["config.json"] = text({**self._config, "model_type": "evil", "auto_map": code})
            files["evil.py"] = b"open('pwned', 'w').close()\n"
        return files

    def enter(self, folder: Path) -> None:
        open_models(Recipe(base=Model(path=str(folder)), sources={}, rules=()))


class Tokenizers:
    """tokenizer.json, tokenizer_config.json and their smaller relatives."""

    name = "tokenizers"

    def __init__(self) -> None:
        self._words = json.loads((BASE / "tokenizer.json").read_text())
        self._settings = json.loads((BASE / "tokenizer_config.json").read_text())

    def make(self, random: Random) -> Files:
        files: dict[str, Any] = {
            "tokenizer.json": text(self._words),
            "tokenizer_config.json": text(self._settings),
        }
        match random.randrange(7):
            case 0 | 1:
                files["tokenizer.json"] = text(spoil(random, self._words))
            case 2 | 3:
                files["tokenizer_config.json"] = text(spoil(random, self._settings))
            case 4:
                name = random.choice(list(files))
                files[name] = spoil_bytes(random, files[name])
            case 5:
                own = {"bos_token": "<s>", "additional_special_tokens": ["a", {"content": "b"}]}
                files["special_tokens_map.json"] = text(spoil(random, own))
                files["added_tokens.json"] = text(spoil(random, {"<x>": 70, "<y>": 2**31}))
            case 6:
                number = random.choice((-1, 71, 10**6, 10**9, 2**32 - 1, 2**32, 2**64))
                token = {"id": number, "content": "<far>", "special": False}
                rest = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
                words = {**self._words, "added_tokens": [{**token, **rest}]}
                vocabulary = {**self._words["model"]["vocab"], "zz": number}
                far = {**self._words, "model": {**self._words["model"], "vocab": vocabulary}}
                files["tokenizer.json"] = text(random.choice((words, far)))
        if random.random() < 0.05:
            settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.T"]}}
            files["tokenizer_config.json"] = text({**self._settings, **settings})
            files["evil.py"] = b"open('pwned', 'w').close()\n"
        return files

    def enter(self, folder: Path) -> None:
        read_vocabularies({BASE_NAME: folder})

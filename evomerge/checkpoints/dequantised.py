"""Quantised checkpoints and GGUF files, turned once into ordinary safetensors folders.

transformers undoes the quantisation, since it knows the formats. The result, in the type that the
checkpoint computes in, is kept in the user's cache under a hash of the original files, and read
from there like any other checkpoint. While it is made, the whole model is in memory.
"""

import fcntl
import importlib.metadata
import importlib.util
import inspect
import json
import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from evomerge.checkpoints.hashes import HashCache
from evomerge.checkpoints.source import Checkpoint, combine_hashes, read_json, weight_files
from evomerge.checkpoints.tokenizer import FILES, has_tokenizer
from evomerge.checkpoints.writer import new_folder
from evomerge.errors import UserError
from evomerge.files import write_text

log = logging.getLogger(__name__)

GGUF = ".gguf"
_MARKER = "dequantised.json"
_KEY = "quantization_config"
_PACKAGES = {  # method: the module that transformers needs for it, and what to install
    "gguf": ("gguf", "gguf"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "torchao": ("torchao", "torchao"),
    "bitsandbytes_4bit": ("bitsandbytes", "bitsandbytes"),
    "bitsandbytes_8bit": ("bitsandbytes", "bitsandbytes"),
}
_BY_TENSOR = ("torchao",)
"""Methods whose tensors, once loaded, turn themselves back into plain ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quantised:
    """A checkpoint that no merge can read as it is."""

    path: Path
    """What the user named: a folder, or a .gguf file."""
    method: str
    """By transformers' name, as in `quant_method`."""
    weights: tuple[Path, ...]
    beside: tuple[Path, ...]
    """Tokenizer, generation config and code: copied as they are."""

    @property
    def folder(self) -> Path:
        return self.weights[0].parent


def open_checkpoint(path: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """The checkpoint in a folder or .gguf file, opened for merging: dequantised where it must be.

    Hash, size and files are those of the original. UserError where the weights are quantised and
    that cannot be undone here, with the reason and what would mend it.
    """
    found = _quantised(path)
    if found is None:
        return Checkpoint(path)
    folder = _kept(found, trust_remote_code=trust_remote_code)
    return Checkpoint(folder, original=found.weights)


def cache_folder() -> Path:
    """Where dequantised copies lie; it may be deleted at any time."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "evomerge" / "dequantised"


def _quantised(path: Path) -> _Quantised | None:
    """What is quantised about a checkpoint; None: nothing."""
    if path.is_file():
        return _Quantised(path=path, method="gguf", weights=(path,), beside=())
    single = sorted(path.glob(f"*{GGUF}"))
    if single and not any(path.glob("*.safetensors")):
        if len(single) > 1:
            raise UserError(
                f"{path}: has {len(single)} GGUF files ({single[0].name}, {single[1].name}, ...); "
                "expected one: name the file instead of the folder (a model that is split over "
                "several must be joined first, with llama.cpp's llama-gguf-split --merge)"
            )
        return _Quantised(path=path, method="gguf", weights=(single[0],), beside=_beside(path))
    settings = read_json(path / "config.json").get(_KEY)
    if not isinstance(settings, dict):
        return None
    names = sorted(set(weight_files(path).values()))
    method = str(settings.get("quant_method"))
    if bits := [bits for bits in ("4bit", "8bit") if settings.get(f"load_in_{bits}")]:
        method = f"bitsandbytes_{bits[0]}"
    return _Quantised(
        path=path,
        method=method,
        weights=tuple(path / name for name in names),
        beside=_beside(path),
    )


def _beside(folder: Path) -> tuple[Path, ...]:
    patterns = (*FILES, "generation_config.json", "*.py")
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return tuple(sorted(found))


def _kept(found: _Quantised, *, trust_remote_code: bool) -> Path:
    """The dequantised copy in the cache; made if it is not there yet, by one process at a time."""
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = cache / _fingerprint(found, cache)
        with _alone(cache / f"{folder.name}.lock", found):
            if not (folder / _MARKER).exists():
                _make(found, folder, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise UserError(
            f"{found.path}: is quantised ({found.method}), and its dequantised copy cannot be "
            f"written: {error}; make room, or set XDG_CACHE_HOME to a folder that has some"
        ) from error
    return folder


def _fingerprint(found: _Quantised, cache: Path) -> str:
    """Of all that determines the copy: the files' content, and the libraries that read them."""
    hashes = HashCache(cache / "hashes.json")
    files = [*found.weights, *found.beside]
    files += [found.folder / "config.json"] if found.method != "gguf" else []
    key = hashes.of_files(files)
    hashes.save()
    packages = [
        "evomerge",
        "transformers",
        *(p for _, p in [_PACKAGES.get(found.method, ("", ""))] if p),
    ]
    for package in packages:
        try:
            key = combine_hashes({key: f"{package} {importlib.metadata.version(package)}"})
        except importlib.metadata.PackageNotFoundError:
            continue  # said where the copy is made
    return key[:24]


@contextmanager
def _alone(path: Path, found: _Quantised) -> Iterator[None]:
    """Holds a lock; the operating system drops it with the process."""
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("waiting for another process that dequantises %s", found.path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(found: _Quantised, folder: Path, *, trust_remote_code: bool) -> None:
    _check_can_be_undone(found)
    log.warning(
        "dequantising %s (%s), once: the whole model is in memory meanwhile",
        *(found.path, found.method),
    )
    start = time.perf_counter()
    with new_folder(folder, force=True) as beside:
        try:
            with _without_progress_bars():
                _write(found, beside, trust_remote_code=trust_remote_code)
        # Loaders fail in ways of their own; what they say names the package or device they miss.
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk; transformers' own have no number
            raise _refused(found, f"{type(error).__name__}: {error}") from error
        facts = {"from": str(found.path.resolve()), "method": found.method}
        write_text(beside / _MARKER, json.dumps(facts, indent=1))
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**30
    seconds = time.perf_counter() - start
    log.warning(
        "dequantised %s in %.1f s: %.3g GiB in %s, kept for the next time; delete that folder to "
        "have the room back",
        *(found.path, seconds, size, folder),
    )


def _without_progress_bars() -> AbstractContextManager[object]:
    """The loaders' own, which a log would be full of; a terminal shows them."""
    return nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO())


def _check_can_be_undone(found: _Quantised) -> None:
    """UserError, before the weights are read, where transformers has no way or misses a package."""
    if not _can_be_undone(found.method):
        known = ", ".join(filter(_can_be_undone, sorted(AUTO_QUANTIZATION_CONFIG_MAPPING)))
        raise _refused(found, f"transformers turns back {known}, not this method")
    module, package = _PACKAGES.get(found.method, ("torch", ""))
    if importlib.util.find_spec(module) is None:
        raise _refused(found, f"that needs a package that is not installed: pip install {package}")


def _can_be_undone(method: str) -> bool:
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        return False
    return _while_loading(method) or _once_loaded(method) or method in _BY_TENSOR


def _while_loading(method: str) -> bool:
    settings: Any = AUTO_QUANTIZATION_CONFIG_MAPPING[method]
    return "dequantize" in inspect.signature(settings.__init__).parameters


def _once_loaded(method: str) -> bool:
    return "_dequantize" in vars(AUTO_QUANTIZER_MAPPING[method])


def _refused(found: _Quantised, reason: str) -> UserError:
    return UserError(
        f"{found.path}: the weights are quantised ({found.method}), which cannot be undone here: "
        f"{reason.rstrip('. ')}. Expected weights in float32, float16 or bfloat16, or quantised "
        "ones that transformers turns back: use the unquantised model, if there is one"
    )


def _write(found: _Quantised, out: Path, *, trust_remote_code: bool) -> None:
    model = _load_gguf(found) if found.method == "gguf" else _load(found, trust_remote_code)
    _unquantised(model, trust_remote_code).save_pretrained(out)
    config = read_json(out / "config.json")
    if found.method != "gguf":  # its own words, where transformers would add or drop some
        own = read_json(found.folder / "config.json")
        config = {k: v for k, v in own.items() if k not in (_KEY, "torch_dtype")} | {
            "dtype": config["dtype"]
        }
    write_text(out / "config.json", json.dumps(config, indent=2))
    for path in found.beside:
        shutil.copyfile(path, out / path.name)
    if found.method == "gguf" and not has_tokenizer(out) and _brings_tokenizer(found.weights[0]):
        tokenizer = AutoTokenizer.from_pretrained(
            found.folder, gguf_file=found.weights[0].name, local_files_only=True
        )
        tokenizer.save_pretrained(out)


def _load(found: _Quantised, trust_remote_code: bool) -> PreTrainedModel:
    automatic: Any = AutoModelForCausalLM
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    config = AutoConfig.from_pretrained(found.folder, **options)
    if _while_loading(found.method):
        config.quantization_config = {**config.quantization_config, "dequantize": True}
    model, info = automatic.from_pretrained(
        found.folder,
        config=config,
        dtype="auto",
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    _check_complete(model, info)
    if _once_loaded(found.method):
        model.dequantize()
    return model  # type: ignore[no-any-return]


def _load_gguf(found: _Quantised) -> PreTrainedModel:
    automatic: Any = AutoModelForCausalLM
    model, info = automatic.from_pretrained(
        found.folder,
        gguf_file=found.weights[0].name,
        dtype=_type_of_matrices(found.weights[0]),
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
        local_files_only=True,
    )
    _check_complete(model, info)
    return model  # type: ignore[no-any-return]


def _check_complete(model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """ValueError where transformers made weights up because it found none in the files."""
    if missing := sorted(set(info["missing_keys"]) - set(model.all_tied_weights_keys or {})):
        raise ValueError(f"{len(missing)} tensors are missing from the files, such as {missing[0]}")


def _type_of_matrices(file: Path) -> torch.dtype:
    """float32 or float16 where most elements of a GGUF file are; else bfloat16, which
    rounds less than the packed types do."""
    from gguf import GGUFReader

    elements: Counter[str] = Counter()
    for tensor in GGUFReader(file).tensors:
        elements[tensor.tensor_type.name] += int(tensor.n_elements)
    ((name, _),) = elements.most_common(1)
    return {"F32": torch.float32, "F16": torch.float16}.get(name, torch.bfloat16)


def _brings_tokenizer(file: Path) -> bool:
    from gguf import GGUFReader

    return "tokenizer.ggml.tokens" in GGUFReader(file).fields


@torch.no_grad()
def _unquantised(model: PreTrainedModel, trust_remote_code: bool) -> PreTrainedModel:
    """The plain model of the same configuration, with the loaded model's tensors.

    Loading left its own ways to disk in the model; a plain one saves under the original names, and
    accepts no tensor that is not its own.
    """
    config = model.config
    if hasattr(config, _KEY):
        del config.quantization_config
    automatic: Any = AutoModelForCausalLM
    with torch.device("meta"):
        plain: PreTrainedModel = automatic.from_config(config, trust_remote_code=trust_remote_code)
    state = {name: _turned_back(name, tensor) for name, tensor in model.state_dict().items()}
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    return plain


def _turned_back(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """ValueError for a tensor that is still packed: a loader may leave one whose scale it lacks."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        tensor = tensor.dequantize()
    if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
        raise ValueError(
            f"the tensor {name} is still {tensor.dtype} after loading: has it no scale?"
        )
    return tensor

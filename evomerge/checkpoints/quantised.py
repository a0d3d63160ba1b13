"""What is quantised about a checkpoint, and how transformers turns it back.

transformers knows the formats, and loads each in one of three ways: it dequantises while it loads,
or the loaded model does, or its tensors do. What it has no way for is refused before it is read.
"""

import importlib.util
import inspect
import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
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

from evomerge.checkpoints.gguf_header import count_tensors
from evomerge.checkpoints.source import open_file, read_json, weight_files
from evomerge.checkpoints.tokenizer import FILES, check_inside, has_tokenizer
from evomerge.errors import UserError
from evomerge.files import write_text

_KEY = "quantization_config"
PACKAGES = {
    "gguf": "gguf",
    "compressed-tensors": "compressed-tensors",
    "torchao": "torchao",
    "bitsandbytes_4bit": "bitsandbytes",
    "bitsandbytes_8bit": "bitsandbytes",
}
"""Method: the package that transformers needs for it."""
_PACKED = 16
"""Weights in an element of a packed tensor, at most: of 2 bits in 32."""
_SLACK = 1_000_000
_BY_TENSOR = ("torchao",)
"""Methods whose tensors, once loaded, turn themselves back into plain ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
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
        """Of the weights."""
        return self.weights[0].parent


def find_quantised(path: Path) -> Quantised | None:
    """What is quantised about a checkpoint; None: nothing."""
    if path.is_file():
        return Quantised(path=path, method="gguf", weights=(path,), beside=())
    single = sorted(path.glob("*.gguf"))
    if single and not any(path.glob("*.safetensors")):
        if len(single) > 1:
            raise UserError(
                f"{path}: has {len(single)} GGUF files ({single[0].name}, {single[1].name}, ...); "
                "expected one: name the file instead of the folder (a model that is split over "
                "several must be joined first, with llama.cpp's llama-gguf-split --merge)"
            )
        return Quantised(path=path, method="gguf", weights=(single[0],), beside=_beside(path))
    settings = read_json(path / "config.json").get(_KEY)
    if not isinstance(settings, dict):
        return None
    names = sorted(set(weight_files(path).values()))
    method = str(settings.get("quant_method"))
    if bits := [bits for bits in ("4bit", "8bit") if settings.get(f"load_in_{bits}")]:
        method = f"bitsandbytes_{bits[0]}"
    return Quantised(
        path=path,
        method=method,
        weights=tuple(path / name for name in names),
        beside=_beside(path),
    )


def _beside(folder: Path) -> tuple[Path, ...]:
    patterns = (*FILES, "generation_config.json", "*.py")
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return tuple(sorted(found))


def check_can_be_undone(found: Quantised) -> None:
    """UserError, before the weights are read, where transformers has no way or misses a package."""
    if not _can_be_undone(found.method):
        known = ", ".join(filter(_can_be_undone, sorted(AUTO_QUANTIZATION_CONFIG_MAPPING)))
        raise refused(found, f"transformers turns back {known}, not this method")
    package = PACKAGES.get(found.method, "transformers")
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        raise refused(found, f"that needs a package that is not installed: pip install {package}")


def _can_be_undone(method: str) -> bool:
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        return False
    return _while_loading(method) or _once_loaded(method) or method in _BY_TENSOR


def _while_loading(method: str) -> bool:
    settings: Any = AUTO_QUANTIZATION_CONFIG_MAPPING[method]
    return "dequantize" in inspect.signature(settings.__init__).parameters


def _once_loaded(method: str) -> bool:
    return "_dequantize" in vars(AUTO_QUANTIZER_MAPPING[method])


def refused(found: Quantised, reason: str) -> UserError:
    """The error that gives the reason."""
    return UserError(
        f"{found.path}: the weights are quantised ({found.method}), which cannot be undone here: "
        f"{reason.rstrip('. ')}. Expected weights in float32, float16 or bfloat16, or quantised "
        "ones that transformers turns back: use the unquantised model, if there is one"
    )


def write_plain(found: Quantised, out: Path, *, trust_remote_code: bool) -> None:
    """Writes the model with ordinary weights to a folder; the whole model is in memory.

    Exceptions of the loaders pass: what they say names the package or device that they miss.
    """
    model = _load_gguf(found) if found.method == "gguf" else _load(found, trust_remote_code)
    _unquantised(model, trust_remote_code).save_pretrained(out)
    config = read_json(out / "config.json")
    if found.method != "gguf":  # its own words, where transformers would add or drop some
        own = read_json(found.folder / "config.json")
        config = {k: v for k, v in own.items() if k not in (_KEY, "torch_dtype")} | {
            "dtype": config["dtype"]
        }
    write_text(out / "config.json", json.dumps(config, indent=2))
    check_inside(found.path, found.beside)
    for path in found.beside:
        shutil.copyfile(path, out / path.name)
    if found.method == "gguf" and not has_tokenizer(out) and _brings_tokenizer(found.weights[0]):
        tokenizer = AutoTokenizer.from_pretrained(
            found.folder, gguf_file=found.weights[0].name, local_files_only=True
        )
        tokenizer.save_pretrained(out)


def _load(found: Quantised, trust_remote_code: bool) -> PreTrainedModel:
    automatic: Any = AutoModelForCausalLM
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    config = AutoConfig.from_pretrained(found.folder, **options)
    headers = [open_file(path) for path in found.weights]
    slices = [header.get_slice(name) for header in headers for name in header.keys()]  # noqa: SIM118
    elements = sum(math.prod(each.get_shape()) for each in slices)
    _check_size(config, len(slices), _PACKED * elements, trust_remote_code)
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


def _load_gguf(found: Quantised) -> PreTrainedModel:
    automatic: Any = AutoModelForCausalLM
    config = AutoConfig.from_pretrained(
        found.folder, gguf_file=found.weights[0].name, local_files_only=True
    )
    tensors, elements = count_tensors(found.weights[0])
    _check_size(config, tensors, elements, False)
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


def _check_size(config: Any, tensors: int, elements: int, trust_remote_code: bool) -> None:
    """ValueError for a configuration of a model that is larger than its files: all of it would be
    made in memory before its weights are looked for."""
    depth = getattr(config.get_text_config(), "num_hidden_layers", None)
    if depth is not None and not (isinstance(depth, int) and 0 < depth <= tensors):
        raise ValueError(
            f"the configuration tells {depth!r} layers, and there are {tensors} tensors"
        )
    with torch.device("meta"):
        automatic: Any = AutoModelForCausalLM
        plain = automatic.from_config(config, trust_remote_code=trust_remote_code)
    wanted = sum(parameter.numel() for parameter in plain.parameters())
    if wanted > 2 * elements + _SLACK:  # twice: a head may be tied in one and not in the other
        raise ValueError(
            f"the configuration tells of {wanted} weights, and the files have at most {elements}"
        )


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

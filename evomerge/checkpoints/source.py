"""A checkpoint folder with safetensors weights: shapes and types from the headers, bytes on demand.

The safetensors library checks every header (length, offsets, overlaps) as it opens a file; this
module turns what it finds into sentences, and keeps indexes inside their folder.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from evomerge.errors import UserError
from evomerge.files import read_text, sha256_of_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_INTEGERS = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in {**_DTYPES, **_INTEGERS}.items()}
"""The format's names of torch's types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """What a header says of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    """The format's own name: F32, BF16, ..."""
    file: str

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """None where torch merges cannot use it (integers, fp8, packed types)."""
        return _DTYPES.get(self.dtype)


class Checkpoint:
    """One folder of safetensors files, open for reading.

    Raises UserError for a folder without safetensors, damaged or truncated files, indexes that
    point outside the folder or at nothing, and tensors that no merge can use (quantised types).
    """

    def __init__(self, folder: Path, original: tuple[Path, ...] = ()) -> None:
        """original: the files that the folder's weights were made of, which stand for them."""
        self.folder = folder
        self._original = original
        self.config = read_json(folder / "config.json")
        files = weight_files(folder)
        self._open = {file: open_file(folder / file) for file in sorted(set(files.values()))}
        self.tensors: Mapping[str, TensorInfo] = self._headers(files)

    def read(self, name: str) -> torch.Tensor:
        """The tensor's bytes, as stored, on the CPU."""
        return self._open[self.tensors[name].file].get_tensor(name)  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Lets go of the pages that were read: they count as this process's memory until then."""
        self._open = {file: open_file(self.folder / file) for file in self._open}

    def files(self) -> list[Path]:
        """The weight files, in order of name: the original ones, where this is a copy."""
        return list(self._original) or [self.folder / file for file in self._open]

    def sha256(self) -> str:
        """Hash of all weights: of the sorted (file name, content hash) pairs. Reads every byte."""
        return combine_hashes({path.name: sha256_of_file(path) for path in self.files()})

    def bytes(self) -> int:
        """Size of the weight files on disk."""
        return sum(path.stat().st_size for path in self.files())

    def _headers(self, files: Mapping[str, str]) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for file, handle in self._open.items():
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                if files.get(name, file) != file:
                    continue
                header = handle.get_slice(name)
                tensors[name] = TensorInfo(
                    shape=tuple(header.get_shape()), dtype=header.get_dtype(), file=file
                )
        if missing := sorted(set(files) - set(tensors) - {""}):
            raise UserError(
                f"{self.folder / INDEX}: names {len(missing)} tensors that its files do not hold, "
                f"such as {missing[0]!r}; download the model again"
            )
        for name, info in tensors.items():
            if info.torch_dtype is None and info.dtype not in _INTEGERS:
                raise UserError(
                    f"{self.folder / info.file}: tensor {name!r} has type {info.dtype}; expected "
                    "float32, float16 or bfloat16 weights, or a quantization_config in "
                    "config.json that says how to turn them back: use the unquantised model"
                )
        return tensors


def combine_hashes(hashes: Mapping[str, str]) -> str:
    """One hash of several files: SHA-256 over their sorted `name hash` lines."""
    import hashlib

    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; UserError if it is missing, damaged or no object."""
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; expected a model folder of transformers") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def weight_files(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, from the index; {"": file} for a single file."""
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{folder / INDEX}: expected a 'weight_map' from tensors to files")
        for name, file in weight_map.items():
            if not _is_plain(file):
                raise UserError(
                    f"{folder / INDEX}: weight_map.{name}: {file!r} points outside the folder; "
                    "expected the plain name of a file in it"
                )
        return weight_map
    if (folder / WEIGHTS).exists():
        return {"": WEIGHTS}
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise UserError(
            f"{folder}: has only pickled weights ({pickled[0]}), which can run code when read; "
            "convert it to safetensors (load it with transformers, then save_pretrained)"
        )
    raise UserError(f"{folder}: has neither {WEIGHTS} nor {INDEX}; expected safetensors weights")


def _is_plain(file: Any) -> bool:
    """Whether it is the name of something in the folder itself."""
    return (
        isinstance(file, str)
        and PurePosixPath(file).name == file
        and file != ".."
        and "\\" not in file
        and file.isprintable()
    )


def open_file(path: Path) -> Any:
    """A safetensors file, its header checked; UserError if it is missing or damaged."""
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no ordinary file")
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; the index names it, download it again") from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: is damaged or cut off ({error}); expected a whole safetensors file, "
            "download it again"
        ) from error

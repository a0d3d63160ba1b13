"""A checkpoint folder, written shard by shard beside its place and renamed into it.

The folder appears under its name only when everything is in it; recipe.yaml, the marker of
completeness, is written last. A full disk or a kill leaves a hidden `.NAME.partial` folder, which
the next attempt clears away.
"""

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.source import DTYPE_NAMES, INDEX, WEIGHTS
from evomerge.errors import UserError
from evomerge.files import replacing, synchronise, write_text

SHARD_BYTES = 5 * 10**9


@contextmanager
def new_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """A folder to fill, renamed to `folder` when the block ends well.

    UserError if `folder` exists and `force` is false. With `force` the old folder stays whole
    until the new one is.
    """
    if folder.exists() and not force:
        raise UserError(
            f"{folder}: exists already; choose another name, or replace it with --force"
        )
    beside = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (beside, old):
            shutil.rmtree(leftover, ignore_errors=True)
        beside.mkdir()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error}") from error
    try:
        yield beside
        synchronise(beside)
        if folder.exists():
            folder.rename(old)
        try:
            beside.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        synchronise(folder.parent)
    finally:
        for leftover in (beside, old):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def result_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """As `new_folder`; UserError also where what belongs there cannot be written."""
    try:
        with new_folder(folder, force=force) as beside:
            yield beside
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error}; nothing was left there") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What is known of a tensor before it is made."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_weights(
    folder: Path,
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes safetensors files, and the index if there is more than one.

    specs: of every tensor, in the order in which `tensors` brings them. Tensors go to the disk one
    by one: no more than one is held in memory.
    """
    shards = _shards({name: spec.bytes for name, spec in specs.items()}, shard_bytes)
    names = (
        [WEIGHTS]
        if len(shards) == 1
        else [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    )
    stream = iter(tensors)
    weight_map: dict[str, str] = {}
    for file, shard in zip(names, shards, strict=True):
        _write_shard(folder / file, {name: specs[name] for name in shard}, stream)
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(spec.bytes for spec in specs.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _write_shard(
    path: Path, specs: Mapping[str, Spec], stream: Iterator[tuple[str, torch.Tensor]]
) -> None:
    """One safetensors file: header first, then each tensor to its place as it comes.

    The format (a length in 8 bytes, a JSON header, the elements) is written here because the
    library's writer wants all tensors at once. As there, wide types come first, so that every
    tensor is aligned.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in sorted(specs.items(), key=lambda item: -item[1].dtype.itemsize):
        header[name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.bytes],
        }
        offset += spec.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for expected, spec in specs.items():
            name, tensor = next(stream)
            assert name == expected, f"got {name}, expected {expected}"
            assert (tuple(tensor.shape), tensor.dtype) == (spec.shape, spec.dtype), name
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            elements = tensor.detach().cpu().contiguous().flatten()
            file.write(elements.view(torch.uint8).numpy().data)
        file.truncate(8 + len(text) + offset)
    synchronise(path)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes one safetensors file, in one step. OSError where there is no room for it."""
    with replacing(path) as beside:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
        except SafetensorError as error:  # which hides the number of an OSError in its text
            raise OSError(str(error)) from error


def read_tensors(path: Path) -> dict[str, torch.Tensor] | None:
    """What `write_tensors` wrote; None where there is no whole file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def _shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards

"""A checkpoint folder, written shard by shard beside its place and renamed into it.

The folder appears under its name only when everything is in it; recipe.yaml, the marker of
completeness, is written last. A full disk or a kill leaves a hidden `.NAME.partial` folder, which
the next attempt clears away.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.source import INDEX, WEIGHTS
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
        beside.rename(folder)
        synchronise(folder.parent)
    finally:
        for leftover in (beside, old):
            shutil.rmtree(leftover, ignore_errors=True)


def write_weights(
    folder: Path,
    sizes: Mapping[str, int],
    tensors: Iterable[tuple[str, torch.Tensor]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes safetensors files, and the index if there is more than one.

    sizes: bytes of every tensor, in the order in which `tensors` brings them. Holds at most one
    shard in memory.
    """
    shards = _shards(sizes, shard_bytes)
    names = (
        [WEIGHTS]
        if len(shards) == 1
        else [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    )
    stream = iter(tensors)
    weight_map: dict[str, str] = {}
    for file, shard in zip(names, shards, strict=True):
        content = {}
        for expected in shard:
            name, tensor = next(stream)
            assert name == expected, f"got {name}, expected {expected}"
            content[name] = tensor.contiguous().cpu()
            weight_map[name] = file
        save_file(content, folder / file, metadata={"format": "pt"})
        synchronise(folder / file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes one safetensors file, in one step."""
    with replacing(path) as beside:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)


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

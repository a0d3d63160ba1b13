"""Gram matrices of what linear layers were fed, kept on the disk.

They are as large as the weights, one set per source: so one is read when it is needed, and only the
last of them stay in memory. A folder per source and calibration text; its index is written last.
"""

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from evomerge.checkpoints.writer import read_tensors, write_tensors
from evomerge.errors import UserError
from evomerge.files import write_text
from evomerge.methods.method import Inputs

_HELD = 2**31  # bytes of Gram matrices in memory
_INDEX = "index.json"

Entry = tuple[str, int]
"""(name of the file that holds the Gram matrix, see `Inputs.dim`)."""


class Activations:
    """The Gram matrices of all sources, by source and slot.

    folder: where they are kept; without one they lie in a temporary folder as long as this does.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="evomerge-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._folder = folder
        self._indexes: dict[str, tuple[Path, Mapping[str, Entry]]] = {}
        self._held: dict[Path, torch.Tensor] = {}

    def find(self, source: str, key: str) -> bool:
        """Whether all of a source's matrices are there under this key; they are then known."""
        if source in self._indexes and self._indexes[source][0] == self._path(key):
            return True
        try:
            index = json.loads((self._path(key) / _INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        self._indexes[source] = (
            self._path(key),
            {slot: tuple(entry) for slot, entry in index.items()},
        )
        return True

    def keep(self, key: str, grams: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Writes Gram matrices by name, as they come."""
        for name, gram in grams:
            with self._written(key) as folder:
                write_tensors(self._file(folder, name), {"gram": gram.cpu()})

    def finish(self, key: str, index: Mapping[str, Entry]) -> None:
        """Says which slot has which matrix, once all of them are kept."""
        with self._written(key) as folder:
            write_text(folder / _INDEX, json.dumps(index, indent=1))

    @contextmanager
    def _written(self, key: str) -> Iterator[Path]:
        """The folder of a key, to write to; UserError where that is not possible."""
        folder = self._path(key)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
        except OSError as error:
            raise UserError(
                f"{folder}: activations cannot be written: {error}; make room, and start again"
            ) from error

    def inputs(self, source: str, slot: str) -> Inputs | None:
        """The inputs of a slot; None where it is no linear layer's weight. UserError where the
        source has not read the calibration text, or the matrix is gone from the folder."""
        if source not in self._indexes:
            raise UserError(
                f"{source}: its activations are not known; expected `calibrate` to have run"
            )
        folder, index = self._indexes[source]
        if slot not in index:
            return None
        name, dim = index[slot]
        return Inputs(gram=self._read(self._file(folder, name)), dim=dim)

    def _read(self, file: Path) -> torch.Tensor:
        if file in self._held:
            return self._held[file]
        found = read_tensors(file)
        if found is None:
            raise UserError(f"{file}: cannot be read; remove its folder, and it is made again")
        gram = found["gram"]
        while self._held and sum(g.nbytes for g in self._held.values()) + gram.nbytes > _HELD:
            del self._held[next(iter(self._held))]
        self._held[file] = gram
        return gram

    def _path(self, key: str) -> Path:
        return self._folder / f"activations-{key}"

    @staticmethod
    def _file(folder: Path, name: str) -> Path:
        return folder / f"{name}.safetensors"

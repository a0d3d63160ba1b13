"""The header of a GGUF file, walked before libraries read it: do its counts fit into the file?

Readers loop as often as a count says. Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import struct
from pathlib import Path
from typing import IO

from evomerge.errors import UserError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type's number."""
_STRING, _ARRAY = 8, 9
_DIMENSIONS = 4
_NESTED = 4
"""Arrays of arrays, at most."""


def check_header(path: Path) -> None:
    """UserError where a length or count of the header reaches beyond the end of the file."""
    count_tensors(path)


def count_tensors(path: Path) -> tuple[int, int]:
    """(tensors, their elements together).

    UserError where a length or count of the header reaches beyond the end of the file."""
    try:
        with path.open("rb") as file:
            return _Walk(file, path.stat().st_size).header()
    except (OSError, ValueError, struct.error) as error:
        raise UserError(
            f"{path}: is damaged or cut off ({error}); expected a whole GGUF file, download "
            "it again"
        ) from error


class _Walk:
    """Goes over a file; ValueError where it would go beyond its end."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size
        self._order = "<"

    def header(self) -> tuple[int, int]:
        """(tensors, their elements together)."""
        if self._take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._number("I")
        if version & 0xFFFF == 0:  # written by a machine of the other order of bytes
            self._order, version = ">", struct.unpack(">I", struct.pack("<I", version))[0]
        if version not in (2, 3):
            raise ValueError(f"version {version}; known are 2 and 3")
        tensors, keys = self._number("Q"), self._number("Q")
        if 24 * tensors + 12 * keys > self._left:
            raise ValueError(f"{tensors} tensors and {keys} keys do not fit into the file")
        for _ in range(keys):
            self._skip(self._number("Q"))
            self._value(self._number("I"), 0)
        elements = 0
        for _ in range(tensors):
            self._skip(self._number("Q"))
            dimensions = self._number("I")
            if dimensions > _DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            elements += math.prod(self._number("Q") for _ in range(dimensions))
            self._skip(4 + 8)
        return tensors, elements

    def _value(self, kind: int, depth: int) -> None:
        if kind == _STRING:
            self._skip(self._number("Q"))
        elif kind == _ARRAY and depth < _NESTED:
            inner, count = self._number("I"), self._number("Q")
            if inner in _SIZES:
                self._skip(_SIZES[inner] * count)
                return
            if 8 * count > self._left:
                raise ValueError(f"an array of {count} values does not fit into the file")
            for _ in range(count):
                self._value(inner, depth + 1)
        elif kind in _SIZES:
            self._skip(_SIZES[kind])
        else:
            raise ValueError(f"a value of type {kind}, which there is not")

    def _number(self, kind: str) -> int:
        content = self._take(struct.calcsize(kind))
        return int(struct.unpack(f"{self._order}{kind}", content)[0])

    def _take(self, count: int) -> bytes:
        self._reach(count)
        return self._file.read(count)

    def _skip(self, count: int) -> None:
        self._reach(count)
        self._file.seek(count, 1)

    def _reach(self, count: int) -> None:
        if count > self._left:
            raise ValueError(f"a length of {count} reaches beyond its end")
        self._left -= count

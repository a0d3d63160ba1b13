"""Files are written beside and renamed, so that a reader sees the old one or the new one."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CHUNK = 16 * 2**20  # bytes


def write_text(path: Path, text: str) -> None:
    """Replaces the file in one step: never half a file, also after a power failure."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces the file in one step: never half a file, also after a power failure."""
    with replacing(path) as beside:
        beside.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed over `path` when the block ends well.

    Where the block raises, what was written is removed and `path` stays as it was.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield beside
        synchronise(beside)
        beside.replace(path)
        synchronise(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def synchronise(path: Path) -> None:
    """Asks the operating system to put a file's or folder's content on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder(name: str) -> Path:
    """evomerge's folder of that name in the user's cache, which may be deleted at any time."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "evomerge" / name


def is_there(path: Path) -> bool:
    """As path.exists(), also for what no path can be: names too long, or with a NUL in them."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_text(path: Path) -> str:
    """The text (UTF-8) of an ordinary file.

    FileNotFoundError where there is none, other OSErrors where it cannot be read or is no file (a
    pipe would never end), ValueError where it is no UTF-8, or the name is none.
    """
    if is_there(path) and not path.is_file():
        raise OSError(f"{path.name} is no ordinary file")
    return path.read_text(encoding="utf-8")


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

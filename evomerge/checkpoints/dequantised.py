"""Quantised checkpoints and GGUF files, turned once into ordinary safetensors folders.

The result, in the type that the checkpoint computes in, is kept in the user's cache under a hash of
the original files, and read from there like any other checkpoint.
"""

import fcntl
import importlib.metadata
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path

from evomerge.checkpoints.gguf_header import check_header
from evomerge.checkpoints.hashes import HashCache
from evomerge.checkpoints.quantised import (
    PACKAGES,
    Quantised,
    check_can_be_undone,
    find_quantised,
    refused,
    write_plain,
)
from evomerge.checkpoints.source import Checkpoint, combine_hashes
from evomerge.checkpoints.writer import new_folder
from evomerge.errors import UserError
from evomerge.files import cache_folder, write_text

log = logging.getLogger(__name__)

_MARKER = "dequantised.json"


def open_checkpoint(path: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """The checkpoint in a folder or .gguf file, opened for merging: dequantised where it must be.

    Hash, size and files are those of the original. UserError where the weights are quantised and
    that cannot be undone here, with the reason and what would mend it.
    """
    found = find_quantised(path)
    if found is None:
        return Checkpoint(path)
    if found.method == "gguf":
        check_header(found.weights[0])
    folder = _kept(found, trust_remote_code=trust_remote_code)
    return Checkpoint(folder, original=found.weights)


def _kept(found: Quantised, *, trust_remote_code: bool) -> Path:
    """The dequantised copy in the cache; made if it is not there yet, by one process at a time."""
    cache = cache_folder("dequantised")
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


def _fingerprint(found: Quantised, cache: Path) -> str:
    """Of all that determines the copy: the files' content, and the libraries that read them."""
    hashes = HashCache(cache / "hashes.json")
    files = [*found.weights, *found.beside]
    files += [found.folder / "config.json"] if found.method != "gguf" else []
    key = hashes.of_files(files)
    hashes.save()
    packages = ["evomerge", "transformers", PACKAGES.get(found.method, "torch")]
    for package in packages:
        try:
            key = combine_hashes({key: f"{package} {importlib.metadata.version(package)}"})
        except importlib.metadata.PackageNotFoundError:
            continue  # said where the copy is made
    return key[:24]


@contextmanager
def _alone(path: Path, found: Quantised) -> Iterator[None]:
    """Holds a lock; the operating system drops it with the process."""
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("waiting for another process that dequantises %s", found.path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(found: Quantised, folder: Path, *, trust_remote_code: bool) -> None:
    check_can_be_undone(found)
    log.warning(
        "dequantising %s (%s), once: the whole model is in memory meanwhile",
        *(found.path, found.method),
    )
    start = time.perf_counter()
    with new_folder(folder, force=True) as beside:
        try:
            with _without_progress_bars():
                write_plain(found, beside, trust_remote_code=trust_remote_code)
        except Exception as error:  # loaders fail in ways of their own
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk; transformers' own have no number
            raise refused(found, f"{type(error).__name__}: {error}") from error
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

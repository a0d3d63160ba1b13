"""Hashes of weights, computed once: a file that has not changed since is not read again."""

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.source import Checkpoint, combine_hashes
from evomerge.files import sha256_of_file, write_text

log = logging.getLogger(__name__)


class HashCache:
    """SHA-256 of files, remembered in a JSON file by path, size and time of change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._known: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}  # a lost cache costs reading the files once more

    def sha256(self, checkpoint: Checkpoint | Adapter) -> str:
        """As Checkpoint.sha256()."""
        return self.of_files(checkpoint.files())

    def of_files(self, paths: Iterable[Path]) -> str:
        """One hash of files in one folder, by their names and content."""
        return combine_hashes({path.name: self._file(path) for path in paths})

    def checked(self, sha256: str, check: Callable[[], str]) -> str:
        """What `check` said of weights of this hash, whenever it did."""
        key = f"checked:{sha256}"
        if key not in self._known:
            self._known[key] = check()
        return self._known[key]

    def save(self) -> None:
        """Writes the cache file, if it can be written."""
        try:
            write_text(self._path, json.dumps(self._known, indent=1))
        except OSError as error:
            log.warning("%s: cannot be written (%s); hashes are computed again", self._path, error)

    def _file(self, path: Path) -> str:
        status = path.stat()
        key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = sha256_of_file(path)
        return self._known[key]

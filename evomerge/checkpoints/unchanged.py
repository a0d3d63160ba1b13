"""Whether the files of models are still those that were opened: a search reads them for hours."""

import logging
from collections.abc import Mapping
from pathlib import Path

from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.source import Checkpoint, combine_hashes
from evomerge.errors import SearchError
from evomerge.files import sha256_of_file

log = logging.getLogger(__name__)

Stamp = tuple[int, int, int]
"""Size in bytes, time of the last change in nanoseconds, number of the inode."""


class Unchanged:
    """Looks at the files of base and sources, and at their content only where they changed."""

    def __init__(
        self, models: Mapping[str, Checkpoint | Adapter], hashes: Mapping[str, str]
    ) -> None:
        """hashes: of each model's weights, as they were read just before."""
        self._models = models
        self._hashes = hashes
        self._stamps = {
            name: {path: _stamp(path) for path in model.files()} for name, model in models.items()
        }
        self._told: dict[str, dict[Path, Stamp | None]] = {}

    def check(self, *, read: bool) -> None:
        """Opens files again that were only written anew, or replaced by a copy.

        read: whether weights are read from the files now; then SearchError where one is gone, or
        has another content. Where they lie in memory, that is only pointed out.
        """
        for name, model in self._models.items():
            stamps = {path: _stamp(path) for path in model.files()}
            if stamps == self._stamps[name] or stamps == self._told.get(name):
                continue
            path = next(p for p, stamp in stamps.items() if stamp != self._stamps[name][p])
            how = self._change(name, path, stamps)
            if how is None:
                model.forget()
                self._stamps[name] = stamps
                log.info("%s: %s was written again, with the same content", name, path)
            elif read or isinstance(model, Adapter):
                raise SearchError(
                    f"source {name} changed during the search: {path} {how}; put back the file "
                    "that the search began with, and the same command goes on"
                )
            else:
                log.warning(
                    "source %s changed during the search: %s %s; the search goes on with what it "
                    "has in memory, but neither a next start nor an export will",
                    *(name, path, how),
                )
                self._told[name] = stamps

    def _change(self, name: str, path: Path, stamps: Mapping[Path, Stamp | None]) -> str | None:
        """In words; None where the content is the same."""
        before, now = self._stamps[name][path], stamps[path]
        if now is None:
            return "is gone"
        if before is not None and before[0] != now[0]:
            return f"has {now[0]} bytes instead of {before[0]}"
        try:
            found = combine_hashes({own.name: sha256_of_file(own) for own in stamps})
        except OSError as error:
            return f"cannot be read ({error})"
        expected = self._hashes[name]
        return (
            None if found == expected else f"has another content (sha256 {found}, not {expected})"
        )


def _stamp(path: Path) -> Stamp | None:
    """None where there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino

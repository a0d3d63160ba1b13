"""The study's journal: a file that many processes write, and to which a proposal is written in one
piece.

Optuna writes and syncs every parameter by itself; on a disk that takes a millisecond for each, and
a space of 200 parameters a quarter of a second per trial. Its own lock is a file, which a killed
process leaves behind for others to wait for; here the operating system holds the lock, and drops it
with the process.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from itertools import chain, islice
from pathlib import Path
from typing import Any

import orjson
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial

from evomerge.errors import UserError
from evomerge.searching.patience import patiently

_TAIL = 2**16  # bytes that are read at once in search of the last whole line
_EVERY = 64
_TRIES, _PAUSE = 5, 0.05  # seconds between looks at an entry that another process may be mending


class RunJournal(BaseJournalBackend):
    """A journal file in Optuna's format, in which entries can be written together.

    Entries that wait are numbered as if they stood in the file already, so the lock is held while
    some wait, and other processes wait too. A kill loses those that wait: a proposal of which
    nothing was scored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            path.touch()
        self._offsets = [0]
        """Where every 64th entry begins, as far as that is known."""
        self._last = (0, 0)
        """(number, offset) of the last entry whose place is known."""
        self._waiting: list[dict[str, Any]] | None = None
        self._written = 0
        """Entries of the file when it was last looked at."""

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """The entries from this number on, those that wait included."""
        if self._waiting is None:
            return self._read(log_number_from)
        if log_number_from < self._written:
            return chain(self._read(log_number_from), self._waiting)
        return self._waiting[log_number_from - self._written :]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Writes entries, or lets them wait. Where the disk is full, waits until it is not."""
        if self._waiting is None:
            with _locked(self._path) as file:
                _write(file, _lines(logs))
        else:
            self._waiting.extend(logs)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Entries wait inside, and are written in one piece at the end, also after an error. Other
        processes see all of them or none, and write nothing meanwhile."""
        with _locked(self._path) as file:
            self._written += sum(1 for _ in self._read(self._written))
            self._waiting = []
            try:
                yield
            finally:
                waiting, self._waiting = self._waiting, None
                if waiting:
                    lines = _lines(waiting)
                    _write(file, lines)
                    # The next read begins behind them, and must not look for its place.
                    for number, line in enumerate(lines, start=self._written):
                        self._pass(number, len(line))

    def _read(self, number: int) -> Iterator[dict[str, Any]]:
        """UserError where an entry is damaged, and is not mended soon."""
        for tries in range(1, _TRIES + 1):
            try:
                for entry in self._entries(number):
                    yield entry
                    number += 1
            except ValueError as error:
                if tries == _TRIES:
                    raise UserError(
                        f"{self._path}: entry {number + 1} is damaged ({error}); restore the file, "
                        "or give the search another `output`"
                    ) from error
                time.sleep(_PAUSE)
            else:
                return

    def _entries(self, first: int) -> Iterator[dict[str, Any]]:
        place, offset = self._last
        if first < place:
            place = first // _EVERY * _EVERY
            offset = self._offsets[first // _EVERY]
        with self._path.open("rb") as file:
            file.seek(offset)
            for number, line in enumerate(file, start=place):
                if not line.endswith(b"\n"):
                    return  # another process is writing it, or was killed
                entry = _parsed(line) if number >= first else {}
                self._pass(number, len(line))
                if number >= first:
                    yield entry

    def _pass(self, number: int, size: int) -> None:
        """Notes where the entry behind this one of so many bytes begins."""
        last, offset = self._last
        if number == last:
            self._last = (last + 1, offset + size)
            if (last + 1) % _EVERY == 0:
                self._offsets.append(offset + size)


class StudyStorage(JournalStorage):
    """Optuna's storage in a journal, of which the finished trials share their parameters' names,
    distributions and choices: a third of the memory of a study, which every process holds."""

    def __init__(self, journal: BaseJournalBackend) -> None:
        self._unfinished: set[int] = set()
        self._seen = 0
        self._spaces: dict[tuple[tuple[str, BaseDistribution], ...], dict[str, Any]] = {}
        """One of each among the trials' distributions, by name of the parameter."""
        super().__init__(journal)

    def _sync_with_backend(self) -> None:
        entries = iter(self._backend.read_logs(self._replay_result.log_number_read))
        while some := list(islice(entries, _EVERY)):
            self._replay_result.apply_logs(some)
            self._share_all()

    def _share_all(self) -> None:
        trials = self._replay_result._trials
        self._unfinished.update(range(self._seen, len(trials)))
        self._seen = len(trials)
        for number in [n for n in self._unfinished if trials[n].state.is_finished()]:
            self._share(trials[number])
            self._unfinished.remove(number)

    def _share(self, trial: FrozenTrial) -> None:
        own = trial.distributions
        space = self._spaces.setdefault(tuple(own.items()), own)
        trial.distributions = space
        trial.params = {
            name: kind.to_external_repr(kind.to_internal_repr(trial.params[name]))
            for name, kind in space.items()
        }


@contextmanager
def _locked(path: Path) -> Iterator[FileIO]:
    """The journal, for this process alone until the block ends."""
    with FileIO(path, "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = orjson.loads(line)  # which has each key in memory only once
    except orjson.JSONDecodeError:
        entry = json.loads(line)  # Optuna writes NaN and infinities too
    return entry


def _lines(logs: list[dict[str, Any]]) -> list[bytes]:
    return [(json.dumps(log, separators=(",", ":")) + "\n").encode() for log in logs]


def _write(file: FileIO, lines: list[bytes]) -> None:
    content = b"".join(lines)
    patiently("writing the study's journal", lambda: _append(file, content))


def _append(file: FileIO, content: bytes) -> None:
    """Puts whole lines at the end, on the disk. What a kill, or a full disk, left half written is
    cut off first: it would join with the next line, and the journal could not be read any more."""
    end = _end_of_last_line(file)
    file.truncate(end)
    file.seek(end)
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


def _end_of_last_line(file: FileIO) -> int:
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _TAIL)
        file.seek(start)
        whole = file.read(end - start).rfind(b"\n")
        if whole >= 0:
            return start + whole + 1
        end = start
    return 0

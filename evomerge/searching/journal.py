"""The study's journal: a file to which a proposal's parameters are written in one piece.

Optuna writes and syncs every parameter by itself; on a disk that takes a millisecond for each, and
a space of 200 parameters a quarter of a second per trial.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileBackend


class RunJournal(BaseJournalBackend):
    """Optuna's journal file, in which entries can be written together.

    Entries that wait are numbered as if they stood in the file already, so only one process may
    write while some wait: the one that holds the run folder's lock. A kill loses those that wait,
    that is, a proposal of which nothing was scored.
    """

    def __init__(self, path: Path) -> None:
        self._file = JournalFileBackend(str(path))
        self._waiting: list[dict[str, Any]] | None = None
        self._written = 0
        """Entries of the file when it was last looked at."""

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """The entries from this number on, those that wait included."""
        if self._waiting is None:
            return self._file.read_logs(log_number_from)
        if log_number_from < self._written:
            return chain(self._file.read_logs(log_number_from), self._waiting)
        return self._waiting[log_number_from - self._written :]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Writes entries, or lets them wait."""
        if self._waiting is None:
            self._file.append_logs(logs)
        else:
            self._waiting.extend(logs)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Entries wait inside, and are written in one piece at the end, also after an error."""
        self._written += sum(1 for _ in self._file.read_logs(self._written))
        self._waiting = []
        try:
            yield
        finally:
            waiting, self._waiting = self._waiting, None
            if waiting:
                self._file.append_logs(waiting)

"""The run folder: what lies where, who may write, and a journal that survives a kill.

study.journal       the study: every trial, in Optuna's journal format
config.yaml         the configuration that started the run
log.txt             what happened, one line per trial
documents.parquet   what every document asks, and what answer is expected
search/00012.npz    scores per document of trial 12 on the search documents
search/00012.answers.json.gz    what it answered to them; only where anything was answered
holdout/00012.npz   the same on the holdout documents, for finalists and baselines
statistics/         what was computed of the sources' tensors, once
lock                held by the process that leads the search; names its pid and host
workers/            a file for each process that works on the run, held locked while it lives
"""

import fcntl
import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, Literal

from optuna.storages import BaseStorage

from evomerge.errors import UserError
from evomerge.scoring.scorecard import DocumentScores, read_documents
from evomerge.searching.journal import RunJournal, StudyStorage
from evomerge.searching.storage import close_storage, storage_of

Side = Literal["search", "holdout"]
STUDY = "evomerge"
_JOURNAL = "study.journal"
_LOCK = "lock"
_TRIES, _PAUSE = 10, 0.02  # seconds between tries for the lock


class RunFolder:
    """Paths inside a run folder. Making one touches nothing on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / _JOURNAL
        self.config = path / "config.yaml"
        self.log = path / "log.txt"
        self.statistics = path / "statistics"
        self.questions = path / "documents.parquet"
        self._lock: IO[str] | None = None
        self._journal: RunJournal | None = None
        self.database: BaseStorage | None = None
        """That was opened for this folder; None: the study is in its journal."""
        self.fetch: Callable[[Side, int], None] | None = None
        """Brings the files of a trial here; None: all are here."""

    def documents(self, side: Side, trial: int) -> Path:
        """Where a trial's scores per document lie."""
        return self.path / side / f"{trial:05}.npz"

    def answers(self, side: Side, trial: int) -> Path:
        """Where what a trial answered lies, if there was anything."""
        return self.path / side / f"{trial:05}.answers.json.gz"

    def scores(self, side: Side, trial: int) -> dict[str, DocumentScores]:
        """A trial's scores per document; fetched first, where another machine's worker has them."""
        path = self.documents(side, trial)
        if self.fetch is not None and not path.exists():
            self.fetch(side, trial)
        return read_documents(path)

    def make(self) -> None:
        """Makes the folder; UserError if it cannot be written."""
        try:
            for side in ("search", "holdout"):
                (self.path / side).mkdir(parents=True, exist_ok=True)
            (self.path / _LOCK).touch()
        except OSError as error:
            raise UserError(f"{self.path}: the run folder cannot be written: {error}") from error

    def lead(self) -> bool:
        """Whether this process leads the run: the lock is its own, or is now.

        The operating system drops the lock with the process, however it ends.
        """
        if self._lock is None:
            file = (self.path / _LOCK).open("a+", encoding="utf-8")
            if not lock(file):
                file.close()
                return False
            self._lock = file
            with suppress(OSError):  # a full disk; the name is a courtesy, the lock is what counts
                file.truncate(0)
                file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
        return True

    @property
    def leading(self) -> bool:
        """Whether this process leads the run."""
        return self._lock is not None

    def open_for_writing(self) -> None:
        """Makes the folder and leads; UserError where another process does, with its pid and
        host."""
        self.make()
        if not self.lead():
            owner = (self.path / _LOCK).read_text(encoding="utf-8").strip()
            raise UserError(
                f"{self.path}: another search is running here ({owner}); wait for it, join it with "
                f"`evomerge worker {self.path}`, or give this one another `output`"
            )

    def close(self) -> None:
        """Gives the lock back, and closes connections to a database."""
        if self.database is not None:
            close_storage(self.database)
            self.database = None
        if self._lock is not None:
            with suppress(OSError):  # the name that a full disk did not take; it is closed anyway
                self._lock.close()
            self._lock = None

    def locked(self) -> bool:
        """Whether a process leads here now."""
        return is_locked(self.path / _LOCK)

    def storage_of_run(self, url: str | None) -> BaseStorage:
        """As `storage`, for reading: UserError where the folder holds no run."""
        if url is None and not self.journal.exists():
            raise UserError(
                f"{self.path}: holds no {_JOURNAL}; expected the output folder of a search"
            )
        return self.storage(url)

    def storage(self, url: str | None) -> BaseStorage:
        """The study's storage: the journal in this folder, or any that Optuna's URL names."""
        if url is not None:
            self.database = storage_of(url)
            return self.database
        if self.journal.exists() and not self.journal.is_file():
            raise UserError(f"{self.journal}: is no ordinary file; expected a search's journal")
        self._journal = RunJournal(self.journal)
        return StudyStorage(self._journal)

    def together(self) -> AbstractContextManager[None]:
        """What is told to the journal inside is written in one piece; for the process that holds
        the lock. Does nothing where the study lies elsewhere."""
        return nullcontext() if self._journal is None else self._journal.together()


def lock(file: IO[Any]) -> bool:
    """Whether the file's lock could be had, for as long as it is open. Readers that look whether it
    is held have it for a moment."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(_PAUSE)
        else:
            return True
    return False


def is_locked(path: Path) -> bool:
    """Whether a process, this one included, holds the lock of a file, which need not be there."""
    try:
        with path.open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False

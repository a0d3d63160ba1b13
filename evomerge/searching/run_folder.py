"""The run folder: what lies where, who may write, and a journal that survives a kill.

study.journal       the study: every trial, in Optuna's journal format
config.yaml         the configuration that started the run
log.txt             what happened, one line per trial
documents.parquet   what every document asks, and what answer is expected
search/00012.npz    scores per document of trial 12 on the search documents
search/00012.answers.json.gz    what it answered to them; only where anything was answered
holdout/00012.npz   the same on the holdout documents, for finalists and baselines
statistics/         what was computed of the sources' tensors, once
lock                held by the process that searches; names its pid and host
"""

import fcntl
import os
import socket
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Literal

import optuna
from optuna.storages import BaseStorage, JournalStorage

from evomerge.errors import UserError
from evomerge.searching.journal import RunJournal

Side = Literal["search", "holdout"]
STUDY = "evomerge"
_JOURNAL = "study.journal"
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

    def documents(self, side: Side, trial: int) -> Path:
        """Where a trial's scores per document lie."""
        return self.path / side / f"{trial:05}.npz"

    def answers(self, side: Side, trial: int) -> Path:
        """Where what a trial answered lies, if there was anything."""
        return self.path / side / f"{trial:05}.answers.json.gz"

    def open_for_writing(self) -> None:
        """Makes the folder, locks it for this process, and mends a journal that a kill tore.

        The operating system drops the lock with the process, however it ends. UserError if the
        folder cannot be written, or another process holds the lock.
        """
        try:
            for side in ("search", "holdout"):
                (self.path / side).mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.path}: the run folder cannot be written: {error}") from error
        if not _lock(self._lock):
            self._lock.seek(0)
            owner = self._lock.read().strip()
            self.close()
            raise UserError(
                f"{self.path}: another search is running here ({owner}); "
                "wait for it, or give this one another `output`"
            )
        self._lock.truncate(0)
        self._lock.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()
        mend_journal(self.journal)

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def locked(self) -> bool:
        """Whether a process searches here now."""
        try:
            with (self.path / "lock").open("r", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

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
            return optuna.storages.get_storage(url)
        self._journal = RunJournal(self.journal)
        return JournalStorage(self._journal)

    def together(self) -> AbstractContextManager[None]:
        """What is told to the journal inside is written in one piece; for the process that holds
        the lock. Does nothing where the study lies elsewhere."""
        return nullcontext() if self._journal is None else self._journal.together()


def _lock(file: IO[str]) -> bool:
    """Whether the lock could be had. Readers that look whether it is held have it for a moment."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(_PAUSE)
        else:
            return True
    return False


def mend_journal(journal: Path) -> None:
    """Cuts off a last line that a kill left half written, and a lock whose owner is gone.

    Only for the process that holds the run folder's lock: then nobody else writes. A half line
    would otherwise join with the next one, and Optuna could not read the journal any more.
    """
    Path(f"{journal}.lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)

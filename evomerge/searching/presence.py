"""Who works on a run: which workers live, and which of them leads.

The leader puts dead workers' trials back into the queue, and at the end gives the verdict. With
the study in the run folder, the operating system tells: a worker holds the lock of a file in
`workers/`, and the leader that of `lock`; both are free the moment a process dies, on a shared file
system too. With the study in a database, workers register in a second study beside it and show
signs of life there; the one that came first leads. No clock is compared with another machine's.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from evomerge.errors import UserError
from evomerge.searching.patience import patiently
from evomerge.searching.run_folder import RunFolder, is_locked, lock

log = logging.getLogger(__name__)

WORKERS = "evomerge workers"
"""Name of the study in which workers register: one trial each, for as long as it lives."""

_TRIES = 5
_BEAT = "beat"
"""A registration's last sign of life: the time by its own clock. Among workers only that it changes
counts."""
_SECONDS_BETWEEN_BEATS = 10.0
_SECONDS_OF_SILENCE = 90.0
"""After which a worker on another machine counts as dead."""
_LONGEST_LOOK = 15.0
"""Seconds that one look counts for at most, so that nobody is declared dead while the storage was
gone."""


class Presence(Protocol):
    """One worker's place among the others of its run."""

    name: str
    """Of this worker; no other one ever has it."""

    def leads(self) -> bool:
        """Whether this worker leads; it does from now on, if nobody else does."""
        ...

    def alive(self, worker: str) -> bool:
        """Whether the worker of that name still works."""
        ...

    def leave(self) -> None:
        """Is not there any more."""
        ...


def stamp(label: str | None = None) -> dict[str, Any]:
    """Host, process and start of this process, as others recognise it; label: how logs call it."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "born": _born(os.getpid()),
        "label": label,
        "place": _place(),  # last: with it, the others are known
    }


class FolderPresence:
    """Of workers that share the run folder."""

    def __init__(self, folder: RunFolder, label: str | None = None) -> None:
        self._folder = folder
        self._workers = folder.path / "workers"
        self._workers.mkdir(parents=True, exist_ok=True)
        self.name = ""
        self._file: IO[bytes] | None = None
        for _ in range(_TRIES):
            self._enter(label)
            if self._file is not None:
                return
        raise UserError(
            f"{self._workers}: no file can be locked there; expected a file system that passes on "
            "flock (configs/WORKERS.md), or the URL of a database as `storage`"
        )

    def _enter(self, label: str | None) -> None:
        """Takes a name, unless somebody took its file for a dead one's before it was locked."""
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        path = self._place_of(self.name)
        file = path.open("wb", buffering=0)
        if not lock(file) or not path.exists():
            file.close()
            return
        self._file = file
        content = json.dumps(stamp(label)).encode()
        patiently("registering", lambda: file.write(content))
        for other in self._workers.glob(f"*-*-{'[0-9a-f]' * 6}"):
            self.alive(other.name)

    def leads(self) -> bool:
        """See `Presence`."""
        return self._folder.leading or (not self._folder.locked() and self._folder.lead())

    def alive(self, worker: str) -> bool:
        """See `Presence`. The file of a dead one is removed."""
        path = self._place_of(worker)
        if is_locked(path):
            return True
        # Under its lock: a worker that comes just now sees that its file is gone.
        with suppress(FileNotFoundError), path.open("rb+") as file:
            if not lock(file):
                return True
            path.unlink()
        return False

    def leave(self) -> None:
        """See `Presence`."""
        if self._file is not None:
            self._place_of(self.name).unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _place_of(self, worker: str) -> Path:
        return self._workers / Path(worker).name


class StudyPresence:
    """Of workers that share a database."""

    def __init__(
        self,
        storage: BaseStorage,
        label: str | None = None,
        *,
        beats: float = _SECONDS_BETWEEN_BEATS,
        silence: float = _SECONDS_OF_SILENCE,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """beats: seconds between signs of life. silence: seconds after which there is none."""
        self._storage = storage
        self._silence = silence
        self._now = now
        self._study = optuna.create_study(
            storage=storage,
            study_name=WORKERS,
            load_if_exists=True,
            directions=[StudyDirection.MAXIMIZE],
        )
        trial = self._study.ask()
        self._id = trial._trial_id
        self._number = trial.number
        self.name = str(trial.number)
        for key, value in {**stamp(label), _BEAT: _now()}.items():
            storage.set_trial_user_attr(self._id, key, value)
        self._heard: dict[int, tuple[Any, float, float]] = {}
        """Worker -> its last beat, when it was last looked at, seconds of silence seen."""
        self._gone = threading.Event()
        self._thread = threading.Thread(
            target=self._live, args=(beats,), name="signs of life", daemon=True
        )
        self._thread.start()

    def leads(self) -> bool:
        """See `Presence`. A worker that others took for dead leads no more."""
        trials = self._study.get_trials(deepcopy=False)
        if trials[self._number].state.is_finished():
            return False
        before = (t for t in trials[: self._number] if not t.state.is_finished())
        return not any(self._lives(trial) for trial in before)

    def alive(self, worker: str) -> bool:
        """See `Presence`."""
        trials = self._study.get_trials(deepcopy=False)
        if not worker.isdigit() or int(worker) >= len(trials):
            return False
        trial = trials[int(worker)]
        return not trial.state.is_finished() and self._lives(trial)

    def leave(self) -> None:
        """See `Presence`."""
        if not self._gone.is_set():
            self._gone.set()
            self._thread.join()
            self._end(self._number, TrialState.COMPLETE)

    def _live(self, seconds: float) -> None:
        while not self._gone.wait(seconds):
            try:
                self._storage.set_trial_user_attr(self._id, _BEAT, _now())
            except optuna.exceptions.UpdateFinishedTrialError:
                return  # others took this worker for dead
            except Exception as error:  # noqa: BLE001 - the next sign may come through
                log.warning("no sign of life could be given: %s: %s", type(error).__name__, error)

    def _lives(self, trial: optuna.trial.FrozenTrial) -> bool:
        """Whether an unfinished registration is of a living worker; a dead one's is ended."""
        if trial.number == self._number:
            return True
        known = trial.user_attrs
        dead = self._silent(trial.number, known.get(_BEAT))
        if known.get("place") is not None and known["place"] == _place():
            dead = _born(known["pid"]) != known["born"]
        if dead:
            log.warning("worker %d (%s) is dead", trial.number, known.get("host", "unknown host"))
            self._end(trial.number, TrialState.FAIL)
        return not dead

    def _silent(self, worker: int, beat: Any) -> bool:
        now = self._now()
        last, looked, silence = self._heard.get(worker, (beat, now, 0.0))
        silence = silence + min(now - looked, _LONGEST_LOOK) if beat == last else 0.0
        self._heard[worker] = (beat, now, silence)
        return silence > self._silence

    def _end(self, number: int, state: TrialState) -> None:
        try:
            values = 0.0 if state == TrialState.COMPLETE else None
            self._study.tell(number, values, state=state)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            return  # another worker ended it before


def at_work(folder: RunFolder) -> bool:
    """Whether somebody works on the run, as far as can be told at one look: in a database, whether
    a worker gave a sign of life lately by this machine's clock. To be shown; nothing is decided by
    it."""
    if folder.locked():
        return True
    storage = folder.database
    if storage is None or WORKERS not in optuna.get_all_study_names(storage):
        return False
    workers = optuna.load_study(study_name=WORKERS, storage=storage)
    here = workers.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    beats = [each.user_attrs[_BEAT] for each in here if _BEAT in each.user_attrs]
    ages = [datetime.now(UTC) - datetime.fromisoformat(beat) for beat in beats]
    return any(abs(age.total_seconds()) < 2 * _SECONDS_OF_SILENCE for age in ages)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _place() -> str | None:
    """Where process numbers mean the same; None where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _born(process: int) -> str | None:
    """When a process of this machine started, in clock ticks since the machine did (field 22 of
    proc_pid_stat(5)); None where it has ended, or that cannot be told."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else fields[18]

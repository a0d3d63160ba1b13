"""Workers of this machine: processes that are started, watched, and started again."""

import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from optuna.trial import TrialState

from evomerge.errors import UserError
from evomerge.searching.loop import Loop
from evomerge.searching.record import WORKER
from evomerge.searching.study import fail
from evomerge.searching.time_limit import in_minutes
from evomerge.session import Session
from evomerge.workers.joining import STORAGE

log = logging.getLogger(__name__)

MISTAKE = 64
"""Exit code of a worker that found a mistake of the user's, which another start would find too."""

_PAUSE = 0.25  # seconds between looks
_MOST_DEATHS = 6  # in a row, each soon after the start, after which a worker is given up
_SOON = 60.0  # seconds
_LONGEST_WAIT = 60.0  # seconds before a worker is started again
_GRACE = 30.0  # seconds beyond its time limit that a trial has before its worker is killed
_LINES = 5  # of what a dead worker said last


def devices_of_workers(device: str, workers: int | None) -> tuple[str, ...]:
    """The device of each worker.

    device: of the configuration. workers: None: one for each GPU that is visible, if the
    configuration leaves the device open, else one. More than there are GPUs share them in turn.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers: got {workers}; expected at least 1")
    if device == "spread" and (workers or 1) > 1:
        raise UserError(
            f"device: spread: one model takes all GPUs; expected one worker, got {workers}"
        )
    visible = torch.cuda.device_count() if device == "auto" else 0
    count = workers or max(1, visible)
    if not visible:
        return (device,) * count
    return tuple(f"cuda:{number % visible}" for number in range(count))


@dataclass(slots=True, kw_only=True)
class Slot:
    """A worker's place, whichever process has it."""

    number: int
    device: str
    output: Path
    """What the process prints; of its last start."""
    process: subprocess.Popen[bytes] | None = None
    deaths: int = 0
    """In a row, soon after the start."""
    started: float = 0.0
    wait_until: float = 0.0
    ended: bool = False
    failure: str | None = None
    """Why it is not started again."""

    @property
    def label(self) -> str:
        """As the log calls it."""
        return f"worker {self.number}"

    def last_words(self) -> str:
        """The last lines that it printed."""
        try:
            lines = self.output.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return " / ".join(line.strip() for line in lines[-_LINES:] if line.strip())


class Supervisor:
    """Keeps the workers going until the budget is spent, and looks after the study meanwhile."""

    def __init__(self, session: Session, loop: Loop, devices: tuple[str, ...]) -> None:
        """loop: of this process, which leads and scores nothing."""
        self._session = session
        self._loop = loop
        folder = session.folder.path / "workers"
        self.slots = [
            Slot(number=number, device=device, output=folder / f"{number}.txt")
            for number, device in enumerate(devices)
        ]
        self._late: dict[int, float] = {}
        """Running trial -> when it was first seen."""

    def run(self) -> None:
        """Returns when no worker has anything left to do; UserError where none could work."""
        (self._session.folder.path / "workers").mkdir(exist_ok=True)
        for slot in self.slots:
            self._start(slot)
        try:
            while not all(slot.ended for slot in self.slots):
                for slot in self.slots:
                    self._look(slot)
                self._loop.look_after()
                self._end_late_trials()
                time.sleep(_PAUSE)
        finally:
            for slot in self.slots:
                if slot.process is not None:
                    slot.process.kill()
                    slot.process.wait()
        failures = [f"{slot.label}: {slot.failure}" for slot in self.slots if slot.failure]
        if len(failures) == len(self.slots) and not self._loop.stop_asked:
            raise UserError("no worker can go on:\n" + "\n".join(dict.fromkeys(failures)))

    def stop(self) -> None:
        """Lets every worker finish the trial that it is at."""
        self._loop.stop()
        for slot in self.slots:
            if slot.process is not None and slot.process.poll() is None:
                slot.process.terminate()

    def words(self) -> str:
        """`7 of 8 workers; worker 3 is started again in 4 s`."""
        working = sum(slot.process is not None for slot in self.slots)
        words = [f"{working} of {len(self.slots)} workers"]
        for slot in self.slots:
            if slot.failure:
                words.append(f"{slot.label} was given up")
            elif slot.process is None and not slot.ended:
                wait = max(0.0, slot.wait_until - time.monotonic())
                words.append(f"{slot.label} is started again in {wait:.0f} s")
        return "; ".join(words)

    def processes(self) -> list[int]:
        """Process numbers of the workers that run."""
        return [slot.process.pid for slot in self.slots if slot.process is not None]

    def _start(self, slot: Slot) -> None:
        bench = self._session.bench
        command = [sys.executable, "-m", "evomerge", "worker", str(self._session.folder.path)]
        command += ["--label", slot.label, "--beside", str(len(self.slots)), "--with-parent"]
        command += ["--device", "cuda:0" if slot.device.startswith("cuda:") else slot.device]
        if bench.loaded.config.allow_code:
            command.append("--allow-code")
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if self._session.storage is not None:
            environment[STORAGE] = self._session.storage
        if bench.loaded.config.device == "auto" and slot.device.startswith("cuda:"):
            environment["CUDA_VISIBLE_DEVICES"] = _visible(int(slot.device.partition(":")[2]))
        with _opened(slot.output) as output:
            slot.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # closed when this process ends, however it does
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which passes it on
            )
        slot.started = time.monotonic()

    def _look(self, slot: Slot) -> None:
        if slot.ended:
            return
        if slot.process is None:
            if self._loop.stop_asked:
                slot.ended = True
            elif time.monotonic() >= slot.wait_until:
                self._start(slot)
            return
        code = slot.process.poll()
        if code is None:
            return
        slot.process = None
        if code == 0 or self._loop.stop_asked:
            slot.ended = True
            return
        soon = time.monotonic() - slot.started < _SOON
        slot.deaths = slot.deaths + 1 if soon else 1
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if code == MISTAKE or slot.deaths >= _MOST_DEATHS:
            slot.ended, slot.failure = True, slot.last_words() or how
            log.error("%s ended (%s) and is given up: %s", slot.label, how, slot.failure)
            return
        wait = min(_LONGEST_WAIT, 2.0 ** (slot.deaths - 1) - 0.5)
        slot.wait_until = time.monotonic() + wait
        said = slot.last_words()
        log.warning(
            "%s died (%s) and is started again in %.1f s%s",
            slot.label,
            how,
            wait,
            f"; it said last: {said}" if said else "",
        )

    def _end_late_trials(self) -> None:
        """Kills workers whose trial is beyond its time limit, and did not notice."""
        seconds, study = self._loop.attempt.seconds, self._session.study
        if seconds is None:
            return
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        now = time.monotonic()
        self._late = {trial.number: self._late.get(trial.number, now) for trial in running}
        for trial in running:
            pid = trial.user_attrs.get(WORKER, {}).get("pid")
            slot = next((s for s in self.slots if s.process and s.process.pid == pid), None)
            if slot is None or now - self._late[trial.number] < seconds + _GRACE:
                continue
            reason = (
                f"took longer than {in_minutes(seconds)} (trial_minutes); its worker was killed"
            )
            log.warning("trial %d: %s", trial.number, reason)
            fail(study, trial, reason)
            assert slot.process is not None
            slot.process.kill()


def _opened(path: Path) -> IO[bytes]:
    """For a worker's output, which is not needed where the disk is full."""
    try:
        return path.open("wb")
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error)
        return Path(os.devnull).open("wb")


def _visible(number: int) -> str:
    """What CUDA_VISIBLE_DEVICES calls the GPU of that number among those visible here."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return str(number) if given is None else given.split(",")[number].strip()

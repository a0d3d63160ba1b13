"""Workers are started, watched, and started again when they die, wherever they run."""

import logging
import socket
import time
from dataclasses import dataclass
from typing import Protocol

from optuna.trial import TrialState

from evomerge.errors import EXIT_OF_MISTAKE, UserError
from evomerge.searching.loop import Loop
from evomerge.searching.record import WORKER
from evomerge.searching.recovery import fail
from evomerge.searching.time_limit import in_minutes
from evomerge.session import Session

log = logging.getLogger(__name__)

_PAUSE = 0.25  # seconds between looks
_MOST_DEATHS = 6  # in a row, each soon after the start, after which a worker is given up
_SOON = 60.0  # seconds
_LONGEST_WAIT = 60.0  # seconds before a worker is started again
_GRACE = 30.0  # seconds beyond its time limit that a trial has before its worker is killed
_LINES = 5  # of what a dead worker said last


def last_lines(text: str) -> str:
    """The last few lines in one."""
    lines = text.splitlines()
    return " / ".join(line.strip() for line in lines[-_LINES:] if line.strip())


class Running(Protocol):
    """A worker's process, here or elsewhere."""

    process: int | None
    """Its number on this machine; None: it runs on another one."""

    def ended(self) -> int | None:
        """Its exit code, negative for a signal or a lost machine; None while it runs."""
        ...

    def stop(self) -> None:
        """Lets it finish the trial that it is at."""
        ...

    def kill(self) -> None:
        """Ends it now."""
        ...

    def last_words(self) -> str:
        """The last lines that it printed."""
        ...


class Start(Protocol):
    """Starts workers somewhere."""

    def __call__(self, number: int, arguments: list[str]) -> Running:
        """number: of the worker. arguments: of `evomerge`."""
        ...


@dataclass(slots=True, kw_only=True)
class Slot:
    """A worker's place, whichever process has it."""

    number: int
    running: Running | None = None
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


class Supervisor:
    """Keeps the workers going until the budget is spent, and looks after the study meanwhile."""

    def __init__(self, session: Session, loop: Loop, start: Start, workers: int) -> None:
        """loop: of this process, which leads and scores nothing."""
        self._session = session
        self._loop = loop
        self._start_one = start
        self.slots = [Slot(number=number) for number in range(workers)]
        self._late: dict[int, float] = {}
        """Running trial -> when it was first seen."""

    def run(self) -> None:
        """Returns when no worker has anything left to do; UserError where none could work."""
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
                if slot.running is not None:
                    slot.running.kill()
        failures = [f"{slot.label}: {slot.failure}" for slot in self.slots if slot.failure]
        if len(failures) == len(self.slots) and not self._loop.stop_asked:
            raise UserError("no worker can go on:\n" + "\n".join(dict.fromkeys(failures)))

    def stop(self) -> None:
        """Lets every worker finish the trial that it is at."""
        self._loop.stop()
        for slot in self.slots:
            if slot.running is not None:
                slot.running.stop()

    def words(self) -> str:
        """`7 of 8 workers; worker 3 is started again in 4 s`."""
        working = sum(slot.running is not None for slot in self.slots)
        words = [f"{working} of {len(self.slots)} workers"]
        for slot in self.slots:
            if slot.failure:
                words.append(f"{slot.label} was given up")
            elif slot.running is None and not slot.ended:
                wait = max(0.0, slot.wait_until - time.monotonic())
                words.append(f"{slot.label} is started again in {wait:.0f} s")
        return "; ".join(words)

    def processes(self) -> list[int]:
        """Process numbers of the workers that run on this machine."""
        running = [slot.running.process for slot in self.slots if slot.running is not None]
        return [process for process in running if process is not None]

    def _start(self, slot: Slot) -> None:
        arguments = ["--label", slot.label, "--beside", str(len(self.slots)), "--with-parent"]
        config = self._session.bench.loaded.config
        arguments += ["--allow-code"] if config.allow_code else []
        arguments += ["--trust-remote-code"] if config.trust_remote_code else []
        slot.running = self._start_one(slot.number, arguments)
        slot.started = time.monotonic()

    def _look(self, slot: Slot) -> None:
        if slot.ended:
            return
        if slot.running is None:
            if self._loop.stop_asked:
                slot.ended = True
            elif time.monotonic() >= slot.wait_until:
                self._start(slot)
            return
        code = slot.running.ended()
        if code is None:
            return
        said = slot.running.last_words()
        slot.running = None
        if code == 0 or self._loop.stop_asked:
            slot.ended = True
            return
        soon = time.monotonic() - slot.started < _SOON
        slot.deaths = slot.deaths + 1 if soon else 1
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if code == EXIT_OF_MISTAKE or slot.deaths >= _MOST_DEATHS:
            slot.ended, slot.failure = True, said or how
            log.error("%s ended (%s) and is given up: %s", slot.label, how, slot.failure)
            return
        wait = min(_LONGEST_WAIT, 2.0 ** (slot.deaths - 1) - 0.5)
        slot.wait_until = time.monotonic() + wait
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
            stamp = trial.user_attrs.get(WORKER, {})
            here = stamp.get("host") == socket.gethostname()
            workers = [slot.running for slot in self.slots if slot.running is not None]
            worker = next((w for w in workers if here and w.process == stamp.get("pid")), None)
            if worker is None or now - self._late[trial.number] < seconds + _GRACE:
                continue
            reason = (
                f"took longer than {in_minutes(seconds)} (trial_minutes); its worker was killed"
            )
            log.warning("trial %d: %s", trial.number, reason)
            fail(study, trial, reason)
            worker.kill()

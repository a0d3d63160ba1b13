"""One input through one door: is it accepted or refused clearly, in time, memory and its folder?"""

import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

from evomerge.errors import EvomergeError

PROCESSOR_SECONDS = 5.0
WALL_SECONDS = 60.0
ROOM = 96 * 2**20
"""Bytes that any input may take: what the interpreter and libraries keep."""
PER_BYTE = 256
"""Bytes of memory for each of the input's: a parsed YAML node is a few hundred."""
LONGEST = 20_000
"""Characters of an error."""


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True, slots=True)
class Pipe:
    """A named pipe, which never gives anything."""


Files = Mapping[str, bytes | Link | Pipe]
"""Name -> content: the folder that a door is given."""


class Door(Protocol):
    """A place where files or words of others come in."""

    name: str

    def make(self, random: Random) -> Files:
        """A spoilt input."""
        ...

    def enter(self, folder: Path) -> None:
        """Reads it as a user would have it read; EvomergeError is a clear refusal."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What came of one input."""

    outcome: str
    """accepted, refused, or finding."""
    why: str
    """Of a finding, in a line; equal for equal causes."""
    detail: str
    seconds: float
    """Of the processor."""
    memory: int
    """Bytes that were taken beside those before, at most."""


class TooLong(BaseException):
    """No reader may catch it."""


class Judge:
    """Sends inputs through doors; one for each process, since Python's audit hook stays."""

    def __init__(self, folder: Path, reads: Sequence[Path] = ()) -> None:
        self.folder = folder
        """Made anew for every input, as `input` in here."""
        self._allowed = _allowed(folder, reads)
        self._outside: list[str] | None = None
        self._there: dict[str, object] = {}
        self._count = 0
        sys.addaudithook(self._hook)
        signal.signal(signal.SIGPROF, _stop)
        signal.signal(signal.SIGALRM, _stop)

    def judge(self, door: Door, files: Files) -> Judgement:
        """Writes the files, and opens the door."""
        place = self.folder / "input"
        self._write(place, files)
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        start = time.process_time()
        outcome, why, detail = "accepted", "", ""
        self._outside = []
        try:
            with _limits():
                door.enter(place)
        except EvomergeError as error:
            outcome = "refused"
            if not str(error).strip() or len(str(error)) > LONGEST:
                outcome, why = "finding", f"an error of {len(str(error))} characters"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome, why, detail = "finding", _cause(error), traceback.format_exc()[-6000:]
        outside, self._outside = self._outside, None
        memory = max(0, _memory("VmHWM") - before)
        size = sum(len(content) for content in files.values() if isinstance(content, bytes))
        if outside:
            outcome, why, detail = "finding", f"outside: {outside[0]}", "\n".join(outside[:20])
        elif memory > ROOM + PER_BYTE * size:
            outcome, why = "finding", f"took {memory >> 20} MiB for {size} bytes: {why}"
        spent = time.process_time() - start
        return Judgement(outcome=outcome, why=why, detail=detail, seconds=spent, memory=memory)

    def _write(self, place: Path, files: Files) -> None:
        """Only what differs from the input before, where both are plain."""
        kept = self._there
        plain = all(isinstance(each, bytes) for each in (*files.values(), *kept.values()))
        if not plain or files.keys() != kept.keys() or self._count % 200 == 0:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            kept = {}
        self._count += 1
        for name, content in files.items():
            if kept.get(name) is content:
                continue
            path = place / name
            if name not in kept:
                path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Link):
                path.symlink_to(content.target)
            elif isinstance(content, Pipe):
                os.mkfifo(path)
            else:
                path.write_bytes(content)
        self._there = dict(files)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._outside is None:
            return
        if event == "open":
            path, _, flags = arguments
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            self._check(path, writes, event)
        elif event in _WRITES:
            for path in arguments[: _WRITES[event]]:
                self._check(path, True, event)
        elif event == "exec":
            file = arguments[0].co_filename
            if file.startswith(str(self.folder)):
                self._outside.append(f"ran code of {file}")
        elif event in _NEVER:
            self._outside.append(f"{event} {str(arguments)[:200]}")

    def _check(self, path: object, writes: bool, event: str) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)) or self._outside is None:
            return
        # The real place, so that a link counts as what it points at.
        found = os.path.realpath(os.fsdecode(path))
        allowed = self._allowed[writes]
        if not found.startswith(allowed) and not found.startswith("/proc/self"):
            self._outside.append(f"{event} {'to write ' if writes else ''}{found[:200]}")


_WRITES = {
    **dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate"), 1),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink"), 2),
}
_NEVER = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"),
    *("socket.connect", "socket.getaddrinfo", "socket.sendto", "pickle.find_class"),
    *("ctypes.dlopen", "marshal.load"),
}


def _allowed(folder: Path, more: Sequence[Path]) -> dict[bool, tuple[str, ...]]:
    """By whether it is written: the beginnings of paths that may be opened."""
    own = (str(folder.resolve()),)
    package = Path(__file__).parent.parent.parent
    reads = {sys.prefix, sys.base_prefix, str(package / "evomerge"), str(package / "tests")}
    reads |= {os.path.realpath(path) for path in (*reads, "/usr/share/zoneinfo", "/dev/null")}
    reads |= {str(package / "configs" / "quickstart" / "models"), "/etc/mime.types", "/sys/"}
    reads |= {
        "/proc/",
        "/usr/lib",
        "/usr/local/lib",
        "/etc/localtime",
        "/dev/urandom",
        "/dev/zero/",
    }
    reads |= {os.path.realpath(path) for path in more}
    return {True: (*own, "/dev/null"), False: (*own, *reads)}


@contextmanager
def _limits() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _stop(number: int, frame: object) -> None:
    raise TooLong("the processor's time" if number == signal.SIGPROF else "time")


def _memory(what: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123 - every input
        for line in file:
            if line.startswith(what):
                return int(line.split()[1]) * 1024
    raise OSError(f"the system does not say {what}")


def _cause(error: BaseException) -> str:
    """The kind of error, the last line of evomerge's on the way, and the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/evomerge/" in frame.filename] or frames[-1:]
    last = [own[-1], frames[-1]] if own and frames else []
    told = " > ".join(f"{'/'.join(Path(f.filename).parts[-2:])}:{f.name}:{f.lineno}" for f in last)
    return f"{type(error).__name__} at {told}: {str(error)[:120]!r}"

"""The runs under some folders, read on as they grow."""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from evomerge.dashboard.journal import JournalIndex
from evomerge.dashboard.snapshot import Snapshot, snapshot_of
from evomerge.dashboard.study_index import Index, StudyIndex
from evomerge.errors import UserError
from evomerge.searching.presence import at_work
from evomerge.searching.run_folder import RunFolder

log = logging.getLogger(__name__)

_DEPTH = 3  # folders below a given one in which runs are looked for
_PIECE = 8 * 2**20  # bytes of a journal between which others have their turn


class Run:
    """One run folder."""

    def __init__(self, name: str, folder: RunFolder, storage: str | None = None) -> None:
        """storage: URL of its study, where it is not in the folder."""
        self.name = name
        """Unique among the runs that are shown; part of addresses."""
        self.folder = folder
        self.storage = storage
        self.problem: str | None = None
        """Why it cannot be read."""
        self.snapshot: Snapshot | None = None
        """None before it was read to its end for the first time, and while it has not begun."""
        self._index: Index | None = None
        self._running: bool | None = None
        self._lock = threading.Lock()

    @property
    def read(self) -> float:
        """How much of it was read: 0 to 1."""
        return 0.0 if self._index is None else self._index.share

    @property
    def revision(self) -> int:
        """Grows with every change."""
        return 0 if self.snapshot is None else self.snapshot.revision

    def refresh(self) -> None:
        """Reads what is new."""
        with self._lock:
            try:
                self._refresh()
                self.problem = None
            except Exception as error:  # noqa: BLE001 - a damaged run fails in ways of its own
                # One unreadable run must not take the others' pages away.
                if self.problem is None:
                    log.warning("%s cannot be read: %s", self.folder.path, error)
                self.problem = f"{type(error).__name__}: {error}"

    def _refresh(self) -> None:
        if self._index is None:
            self._index = (
                JournalIndex(self.folder.journal)
                if self.storage is None
                else StudyIndex(self.folder.storage_of_run(self.storage))
            )
        index, changed = self._index, False
        while index.refresh(_PIECE):
            changed = True
        running = at_work(self.folder)
        if changed or running != self._running or self.snapshot is None:
            self._running = running
            self.snapshot = snapshot_of(self.folder, index, self.revision + 1)


class Runs:
    """All runs that are shown, and the thread that reads them."""

    def __init__(self, roots: Sequence[Path], storage: str | None = None) -> None:
        """storage: URL of the study of a single run; UserError where a root is not there."""
        for root in roots:
            if not root.is_dir():
                raise UserError(f"{root}: is no folder; expected a run, or a folder with runs")
        if storage is not None and len(roots) != 1:
            raise UserError("--storage belongs to one run; give one run folder")
        self._roots = roots
        self._storage = storage
        self._runs: dict[Path, Run] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="runs", daemon=True)

    def __iter__(self) -> Iterator[Run]:
        return iter(sorted(self._runs.values(), key=lambda run: run.name))

    def __getitem__(self, name: str) -> Run:
        """KeyError that lists the names."""
        for run in self._runs.values():
            if run.name == name:
                return run
        known = ", ".join(run.name for run in self) or "none"
        raise KeyError(f"there is no run {name!r}; there are: {known}")

    def start(self, seconds: float = 1.0) -> None:
        """Looks for runs at once, and reads them in the background, every so many seconds."""
        self._pause = seconds
        self.find()
        self._thread.start()

    def stop(self) -> None:
        """Ends the reading."""
        self._stop.set()
        self._thread.join()

    def find(self) -> None:
        """Looks for runs that are not known yet."""
        for root in self._roots:
            for path in [root] if self._storage is not None else _run_folders(root):
                if path not in self._runs:
                    name = self._name(root, path)
                    self._runs[path] = Run(name, RunFolder(path), self._storage)

    def refresh(self) -> None:
        """Reads what is new of all runs."""
        for run in self:
            if self._stop.is_set():
                return
            run.refresh()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.find()
            self.refresh()
            self._stop.wait(self._pause)

    def _name(self, root: Path, path: Path) -> str:
        """The shortest that is not taken: the folder's name, with parents as far as needed."""
        parts = path.resolve().parts
        taken = {run.name for run in self._runs.values()}
        names = ["~".join(parts[-length:]) for length in range(1, len(parts))]
        return next(name for name in names if name not in taken)


def _run_folders(root: Path) -> list[Path]:
    """The root, or the folders below it, that hold a journal; none inside another run."""
    found = []
    for path, folders, _ in os.walk(root):
        here = Path(path)
        if RunFolder(here).journal.is_file():
            found.append(here)
            folders.clear()
        if len(here.relative_to(root).parts) >= _DEPTH:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return found

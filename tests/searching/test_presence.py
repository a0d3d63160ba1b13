"""Who lives and who leads, in a folder and in a database."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from evomerge.searching.presence import WORKERS, FolderPresence, StudyPresence, at_work
from evomerge.searching.run_folder import RunFolder

CHILD = """
import sys, time
from pathlib import Path
from evomerge.searching.presence import FolderPresence
from evomerge.searching.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
presence = FolderPresence(folder)
print(presence.name, presence.leads(), flush=True)
time.sleep(60)
"""


def test_in_a_folder_a_killed_process_is_dead_at_once_and_leads_no_more(tmp_path: Path) -> None:
    RunFolder(tmp_path).make()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    name, leads = child.stdout.readline().split()
    folder = RunFolder(tmp_path)
    own = FolderPresence(folder)
    try:
        assert leads == "True"
        assert own.alive(name)
        assert own.alive(own.name)
        assert not own.leads()
        child.kill()
        child.wait()
        child.stdout.close()
        assert not own.alive(name)
        assert own.leads()
        assert not own.alive("../lock")  # a name, never a path
        assert (tmp_path / "lock").exists()
    finally:
        own.leave()
        folder.close()
    assert not list((tmp_path / "workers").iterdir())


@pytest.fixture
def storage() -> BaseStorage:
    return InMemoryStorage()


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def registered(storage: BaseStorage, **known: Any) -> tuple[optuna.Study, int]:
    """A worker of another machine."""
    study = optuna.create_study(
        storage=storage, study_name=WORKERS, load_if_exists=True, direction="maximize"
    )
    trial = study.ask()
    for key, value in {"host": "far", "pid": 1, "place": "far", "beat": 0, **known}.items():
        trial.set_user_attr(key, value)
    return study, trial._trial_id


def test_in_a_database_the_first_one_that_lives_leads(storage: BaseStorage) -> None:
    first, second = StudyPresence(storage), StudyPresence(storage)
    assert first.leads()
    assert not second.leads()
    assert second.alive(first.name)
    first.leave()
    assert not second.alive(first.name)
    assert second.leads()
    assert not first.leads()
    assert not second.alive("no number")
    second.leave()


def test_a_worker_without_signs_of_life_is_dead_for_good(storage: BaseStorage) -> None:
    study, far = registered(storage)
    clock = Clock()
    own = StudyPresence(storage, silence=60, now=clock)
    for beat in range(1, 5):
        clock.now += 14
        storage.set_trial_user_attr(far, "beat", beat)
        assert own.alive("0")
        assert not own.leads()
    for _ in range(4):
        clock.now += 14
        assert own.alive("0")
    clock.now += 14
    assert not own.alive("0")
    assert own.leads()
    assert study.trials[0].state == TrialState.FAIL
    own.leave()


def test_nobody_is_declared_dead_for_an_outage_of_the_storage(storage: BaseStorage) -> None:
    _, far = registered(storage)
    clock = Clock()
    own = StudyPresence(storage, silence=60, now=clock)
    assert own.alive("0")
    clock.now += 7200  # nobody could look, or give a sign
    assert own.alive("0")
    storage.set_trial_user_attr(far, "beat", 1)
    clock.now += 14
    assert own.alive("0")
    own.leave()


def test_on_one_machine_a_killed_process_is_dead_at_once(storage: BaseStorage) -> None:
    own = StudyPresence(storage)
    (study, number) = (own._study, int(own.name))
    known = study.trials[number].user_attrs
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    born = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    registered(storage, pid=child.pid, born=born, place=known["place"])
    registered(storage, pid=child.pid, born="another process's", place=known["place"])
    assert own.alive("1")
    assert not own.alive("2")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not own.alive("1")
    own.leave()


def test_signs_of_life_are_given_until_it_leaves(storage: BaseStorage) -> None:
    own = StudyPresence(storage, beats=0.01)
    end = time.monotonic() + 10
    beats: set[str] = set()
    while len(beats) < 3:
        beats.add(own._study.trials[0].user_attrs["beat"])
        assert time.monotonic() < end
        time.sleep(0.01)
    own.leave()
    assert own._study.trials[0].state == TrialState.COMPLETE
    assert not own._thread.is_alive()


def test_one_look_from_elsewhere_tells_whether_anybody_works(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert not at_work(folder)
    storage = folder.storage(f"sqlite:///{tmp_path / 'study.db'}")
    assert not at_work(folder)
    hours_ago = datetime.now(UTC) - timedelta(hours=3)
    registered(storage, beat=hours_ago.isoformat())
    assert not at_work(folder)
    own = StudyPresence(storage)
    assert at_work(folder)
    own.leave()
    assert not at_work(folder)
    folder.close()

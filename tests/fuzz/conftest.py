"""What a few hundred inputs of every door need; the many are sent by hand (tests/benchmarks)."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import datasets
import pytest

from tests.conftest import small_run
from tests.fuzz.doors import DOORS
from tests.fuzz.judging import Judge

Send = Callable[[str, int], None]


@pytest.fixture(scope="session")
def sound_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short, finished search, in a folder named `night`."""
    folder = tmp_path_factory.mktemp("sound")
    small_run(folder, "task_arithmetic", 6)
    return Path(shutil.copytree(folder / "run", folder / "runs" / "night"))


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the code that reads an input may write."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="session")
def judge(home: Path, sound_run: Path) -> Judge:
    """Sees what is opened, by a hook of Python's that stays; between inputs it does nothing."""
    return Judge(home, [sound_run])


@pytest.fixture
def send(
    judge: Judge, home: Path, sound_run: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Send]:
    """Sends the first inputs of a door, the same ones each time; each must end well."""
    for name in ("XDG_CACHE_HOME", "HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)

    def sent(name: str, count: int) -> None:
        door = DOORS[name](sound_run)
        outcomes = set()
        for number in range(count):
            found = judge.judge(door, door.make(Random(f"0 {name} {number}")))
            assert found.outcome != "finding", f"input {number}: {found.why}\n{found.detail}"
            outcomes.add(found.outcome)
        assert "refused" in outcomes  # the inputs are not all harmless

    yield sent
    logging.disable(level)

"""Folders that cannot be written: the run's, the cache, shared memory."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge import UserError, export, load_config, search
from evomerge.report import read_run

Faulty = Callable[..., Path]
Small = Callable[..., Path]
Disk = Callable[..., Path]


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def test_a_run_folder_that_can_only_be_read(faulty: Faulty, disk: Disk) -> None:
    place = disk("place", 4 * 2**20)
    config = faulty(trials=4)
    output = load_config(config).output()
    config.write_text(config.read_text().replace(f"output: {output}", f"output: {place / 'run'}"))
    remount(place, "ro")
    with pytest.raises(UserError, match=r"run: the run folder cannot be written: .*Read-only"):
        search(config)
    remount(place, "rw")
    folder = search(config).folder
    remount(place, "ro")
    with pytest.raises(UserError, match=r"run: the run folder cannot be written: .*Read-only"):
        search(config)
    assert read_run(folder).counts()["complete"] == 4, "it can be read"
    with pytest.raises(UserError, match=r"winner: cannot be written: .*Read-only"):
        export(folder, place / "winner")


def test_a_cache_that_cannot_be_written_is_not_needed(
    small: Small, disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = disk("cache")
    remount(cache, "ro")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    outcome = search(small(trials=4))
    assert outcome.verdict is not None
    assert "its requests are not kept: " in caplog.text
    assert "Read-only file system" in caplog.text


def test_a_full_dev_shm_is_not_needed(faulty: Faulty) -> None:
    config = faulty(trials=4)
    script = (
        "mount -t tmpfs -o size=4096 tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/ballast "
        f"&& exec {sys.executable} -m evomerge search {config}"
    )
    answer = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if "mount" in answer.stderr or "unshare" in answer.stderr:
        pytest.skip(f"mounting is not permitted here: {answer.stderr.strip()}")
    assert answer.returncode == 0, answer.stderr
    assert read_run(load_config(config).output()).counts()["complete"] == 4

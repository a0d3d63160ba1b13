"""A full disk: under the run folder, and under an export."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge import UserError, export, load_config, merge, search
from evomerge.merging.kept_statistics import KeptStatistics
from evomerge.report import read_run
from evomerge.searching.run_folder import RunFolder
from tests.faults.conftest import full

Faulty = Callable[..., Path]
Disk = Callable[..., Path]


def moved(config: Path, disk: Path) -> Path:
    """The configuration with its run folder on that disk."""
    text = config.read_text()
    output = load_config(config).output()
    config.write_text(text.replace(f"output: {output}", f"output: {disk / 'run'}"))
    return config


@pytest.mark.parametrize("when", [(2, 1), (7, 1), (0, 2)])
def test_a_search_waits_for_room_and_loses_nothing(
    faulty: Faulty, disk: Disk, when: tuple[int, int]
) -> None:
    """There is no room for four seconds, from a candidate's first scoring on, or from its second,
    which is on the holdout."""
    small_disk = disk("disk", 3 * 2**20)
    code = f"""
calls = []

def fault(number, model, documents):
    calls.append(number)
    if (number, calls.count(number)) == {when} and not (HERE / "filled").exists():
        (HERE / "filled").touch()
        while not (HERE / "full").exists():
            pass
"""
    config = moved(faulty(code), small_disk)
    config.write_text(config.read_text().replace("[task_arithmetic]", "[ties]"))  # statistics

    def fill() -> None:
        while not (config.parent / "filled").exists():
            time.sleep(0.01)
        with full(small_disk):
            (config.parent / "full").touch()
            time.sleep(4)

    filler = threading.Thread(target=fill)
    filler.start()
    outcome = search(config)
    filler.join()
    assert outcome.verdict is not None
    report = read_run(outcome.folder)
    assert report.counts()["complete"] == 12
    assert "failed" not in report.counts()
    assert all(record.retry_of is None for record in report.records)
    for record in report.records:
        if record.value is not None:
            kept = RunFolder(outcome.folder).scores("search", record.number)["mine"]
            assert mean(kept.values["score,none"]) == pytest.approx(record.value)


def test_statistics_that_find_no_room_are_computed_again(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    small_disk = disk("disk", 2**20)

    def compute() -> dict[str, torch.Tensor]:
        return {"threshold": torch.arange(3.0)}

    with full(small_disk):
        kept = KeptStatistics(small_disk / "statistics", {"base": "a"})
        assert kept.get("trim", "head", ("base",), compute)["threshold"].tolist() == [0, 1, 2]
    assert "is not kept, and computed again at a next start" in caplog.text
    assert not list(small_disk.rglob("*.safetensors"))
    assert not list(small_disk.rglob("*partial"))


def test_a_start_on_a_full_disk_says_so_and_waits(
    faulty: Faulty, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    small_disk = disk("disk", 2**20)
    config = moved(faulty(trials=4), small_disk)
    waits = "writing the study's journal: OSError: [Errno 28] No space left on device; tried again"

    def make_room() -> None:
        with full(small_disk):
            filled.set()
            deadline = time.monotonic() + 30
            while waits not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.05)

    filled = threading.Event()
    filler = threading.Thread(target=make_room)
    filler.start()
    filled.wait()
    outcome = search(config)
    filler.join()
    assert waits in caplog.text
    assert read_run(outcome.folder).counts()["complete"] == 4


@pytest.mark.parametrize("size", [4096, 2**19, 2**19 + 2**18 + 2**17])
def test_an_export_to_a_full_disk_leaves_nothing_and_works_once_there_is_room(
    faulty: Faulty, disk: Disk, size: int
) -> None:
    outcome = search(faulty(trials=4))
    small_disk = disk("disk", size)
    winner = small_disk / "winner"
    with pytest.raises(UserError, match=r"winner: cannot be written.*No space left"):
        export(outcome.folder, winner)
    assert not list(small_disk.iterdir())
    recipe = read_run(outcome.folder).records[3].recipe
    with pytest.raises(UserError, match=r"winner: cannot be written.*No space left"):
        merge(recipe, winner)
    assert not list(small_disk.iterdir())


def test_an_export_that_replaces_another_keeps_it_where_the_disk_is_full(
    faulty: Faulty, disk: Disk
) -> None:
    outcome = search(faulty(trials=4))
    small_disk = disk("disk", 4 * 2**20)
    winner = export(outcome.folder, small_disk / "winner")
    before = {path.name: path.read_bytes() for path in winner.iterdir()}
    with full(small_disk), pytest.raises(UserError, match="cannot be written"):
        export(outcome.folder, winner, trial=1, force=True)
    assert {path.name: path.read_bytes() for path in winner.iterdir()} == before
    assert [path.name for path in small_disk.iterdir()] == ["winner"]
    export(outcome.folder, winner, trial=1, force=True)
    model: Any = AutoModelForCausalLM.from_pretrained(winner)
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_an_adapter_on_a_full_disk(faulty: Faulty, disk: Disk) -> None:
    from evomerge.adapting import merge_as_adapter

    outcome = search(faulty(trials=4))
    small_disk = disk("disk", 2**16)
    recipe = read_run(outcome.folder).records[3].recipe
    with pytest.raises(UserError, match=r"cannot be written.*No space left"):
        merge_as_adapter(recipe, small_disk / "adapter", 8)
    assert not list(small_disk.iterdir())

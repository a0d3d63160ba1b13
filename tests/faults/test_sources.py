"""Models whose files are replaced, overwritten, deleted or cut off while a search reads them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge import SearchError, UserError, search
from evomerge.report import read_run

Faulty = Callable[..., Path]
OwnModels = Callable[[Path], Path]

CHANGES = """\
import os, shutil

FILE = HERE / "models" / "past" / "model.safetensors"

def other():
    content = bytearray(FILE.read_bytes())
    content[-1] ^= 1
    return bytes(content)

def renamed():
    beside = FILE.with_name("new")
    beside.write_bytes(other())
    beside.rename(FILE)

def overwritten():
    with FILE.open("rb+") as file:
        file.write(other())

def truncated():
    os.truncate(FILE, 5000)

def deleted():
    FILE.unlink()

def copied():
    beside = FILE.with_name("new")
    shutil.copyfile(FILE, beside)
    beside.rename(FILE)

def fault(number, model, documents):
    if number == 4 and not (HERE / "done").exists():
        (HERE / "done").touch()
        CHANGE()
"""
FILES = "placement: files\n"
WAYS = {
    "renamed": "has another content",
    "overwritten": "has another content",
    "truncated": "has 5000 bytes instead of",
    "deleted": "is gone",
}


def restore(models: Path) -> None:
    source = Path(__file__).parent.parent.parent / "configs" / "quickstart" / "models"
    shutil.copyfile(source / "past" / "model.safetensors", models / "past" / "model.safetensors")


@pytest.mark.parametrize("way", WAYS)
def test_a_change_ends_the_search_and_it_goes_on_once_mended(
    faulty: Faulty, own_models: OwnModels, way: str
) -> None:
    config = faulty(CHANGES.replace("CHANGE()", f"{way}()"), FILES)
    models = own_models(config)
    with pytest.raises(SearchError, match=f"source past changed .*{WAYS[way]}.*put back"):
        search(config)
    report = read_run(config.with_suffix(""))
    assert "failed" not in report.counts(), "no trial is to blame"
    before = {record.number: record.value for record in report.records if record.value is not None}
    assert len(before) == 5
    with pytest.raises(UserError, match=r"models.past: '\w+' -> '\w+'|cut off|has neither model"):
        search(config)
    restore(models)
    outcome = search(config)
    after = read_run(outcome.folder)
    assert outcome.verdict is not None
    assert before.items() <= {record.number: record.value for record in after.records}.items()
    assert after.counts()["complete"] == 12
    assert "failed" not in after.counts()


def test_a_copy_of_the_same_content_is_no_change(faulty: Faulty, own_models: OwnModels) -> None:
    config = faulty(CHANGES.replace("CHANGE()", "copied()"), FILES)
    own_models(config)
    outcome = search(config)
    assert outcome.verdict is not None
    assert "was written again, with the same content" in (outcome.folder / "log.txt").read_text()


def test_what_is_in_memory_needs_no_file(faulty: Faulty, own_models: OwnModels) -> None:
    config = faulty(CHANGES.replace("CHANGE()", "deleted()"))
    own_models(config)
    outcome = search(config)
    assert outcome.verdict is not None
    log = (outcome.folder / "log.txt").read_text()
    assert log.count("model.safetensors is gone; the search goes on with what it has") == 1


CUT_WHILE_READ = """\
import os, sys
from pathlib import Path
from evomerge import search
from evomerge.merging import workspace

config = Path(sys.argv[1])
merge_job, jobs = workspace.merge_job, []

def cut(*arguments, **options):
    jobs.append(1)
    if len(jobs) == 100:  # within a candidate
        os.truncate(config.parent / "models" / "past" / "model.safetensors", 5000)
    return merge_job(*arguments, **options)

workspace.merge_job = cut
search(config)
"""


def test_a_file_cut_off_while_it_is_read_kills_and_the_next_start_tells(
    faulty: Faulty, own_models: OwnModels
) -> None:
    config = faulty("", FILES)
    models = own_models(config)
    command = [sys.executable, "-c", CUT_WHILE_READ, str(config)]
    died = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGBUS, died.stderr[-2000:]
    with pytest.raises(UserError, match=r"past.*model.safetensors: is damaged or cut off"):
        search(config)
    restore(models)
    outcome = search(config)
    assert outcome.verdict is not None
    assert read_run(outcome.folder).counts()["complete"] == 12


def test_a_source_changed_between_two_starts_is_refused_with_the_difference(
    faulty: Faulty, own_models: OwnModels
) -> None:
    config = faulty(trials=4)
    models = own_models(config)
    outcome = search(config)
    shutil.copyfile(models / "dial" / "model.safetensors", models / "past" / "model.safetensors")
    known = json.dumps(read_run(outcome.folder).counts())
    with pytest.raises(UserError, match=r"models.past: '\w+' -> '\w+'\n.*--fork"):
        search(config)
    assert json.dumps(read_run(outcome.folder).counts()) == known

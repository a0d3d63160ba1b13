"""Run folders from elsewhere: each shows what can be shown, and takes nothing else away."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evomerge.dashboard.columns import Columns
from evomerge.describe import describe_run
from evomerge.documents import read_questions
from evomerge.errors import UserError
from evomerge.report import read_run
from tests.fuzz.doors_of_runs import Site


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(folder / "runs" / "other", tmp_path / "runs" / "night"))


def append(run: Path, **attributes: Any) -> None:
    row = {"op_code": 2, "worker_id": "x", "study_id": 0, "user_attr": attributes}
    with (run / "study.journal").open("a") as file:
        file.write(json.dumps(row, separators=(",", ":")) + "\n")


@pytest.mark.parametrize(
    "attributes",
    [
        {"objective": 3},
        {"objective": {"capital": {"metric": 3, "weight": "x"}}},
        {"goal": []},
        {"tasks": "x"},
        {"points:1000000000000": {"metrics": []}},
        {"points:x": {"metrics": []}},
        {"holdout:0": {"metrics": [{"a": 1}]}},
        {"verdict": {"winner": 10**9}},
        {"history": {}},
        {"ended": {"state": 3}},
    ],
    ids=str,
)
def test_a_study_with_other_values(run: Path, attributes: dict[str, Any]) -> None:
    append(run, **attributes)
    site = Site(run.parent)
    for place in ("/", "/runs.csv", "/run/night", "/run/night/trial/0", "/run/night/trials.csv"):
        assert site.ask(place.encode()) < 500
    with suppress(UserError):  # some values change nothing that is told
        describe_run(run)


def test_one_damaged_run_leaves_the_others(run: Path, folder: Path) -> None:
    shutil.copytree(folder / "runs" / "other", run.with_name("sound"))
    (run / "study.journal").write_text('{"op_code":2,"user_attr":[]}\n')
    site = Site(run.parent)
    assert site.ask(b"/run/sound") == 200
    assert site.ask(b"/") == 200
    with pytest.raises(UserError, match="its study cannot be read"):
        read_run(run)


@pytest.mark.parametrize("kind", ["pipe", "zero"])
def test_a_journal_that_never_ends(run: Path, kind: str) -> None:
    journal = run / "study.journal"
    journal.unlink()
    if kind == "pipe":
        os.mkfifo(journal)
    else:
        journal.symlink_to("/dev/zero")
    assert Site(run.parent).ask(b"/") == 200
    with pytest.raises(UserError, match="no ordinary file"):
        read_run(run)


@pytest.mark.parametrize(
    ("place", "status"),
    [
        (b"/?x=%ff", 200),
        (b"/run/night?name=\xff", 200),
        (b"/run/night?page=" + b"9" * 5000, 400),
        (b"/compare?trials=night/" + b"9" * 5000, 404),
        ("/run/night?page=²".encode(), 400),
        (b"/static/../app.py", 404),
        (b"/static/%2e%2e/app.py", 404),
        (b"/static/..%2fapp.py", 404),
        (b"/static//etc/passwd", 404),
        (b"/run/%00", 404),
    ],
)
def test_hostile_addresses(run: Path, place: bytes, status: int) -> None:
    assert Site(run.parent).ask(place) == status


def test_metrics_too_many_to_hold() -> None:
    columns = Columns()
    row = {"task": "t", "value": 1.0, "standard_error": None, "documents": 1}
    rows = [{**row, "name": str(n), "higher_is_better": True} for n in range(5000)]
    with pytest.raises(ValueError, match="5000 metrics of 10001 trials"):
        columns.put(10_000, rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": None}, "it has no question"),
        ({"document": "x"}, "the documents have no numbers"),
        ({"expected": 1.5}, "expected: expected texts"),
        ({"choices": 3}, "cannot be read"),
    ],
)
def test_questions_that_are_none(run: Path, changes: dict[str, Any], message: str) -> None:
    path = run / "documents.parquet"
    frame = pd.read_parquet(path)
    ((name, value),) = changes.items()
    frame = frame.drop(columns=name) if value is None else frame.assign(**{name: value})
    frame.to_parquet(path, index=False)
    with pytest.raises(UserError, match=message):
        read_questions(run)


def test_a_table_that_unpacks_to_much(run: Path) -> None:
    rows = 20_000_000
    pd.DataFrame({"task": pd.Series(["t"], dtype="category").repeat(rows)}).to_parquet(
        run / "documents.parquet", index=False
    )
    with pytest.raises(UserError, match="20000000 documents in"):
        read_questions(run)

"""The quick reading of a journal equals Optuna's, also piece by piece."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from evomerge.dashboard.journal import JournalIndex
from evomerge.dashboard.runs import Run, Runs
from evomerge.dashboard.snapshot import snapshot_of
from evomerge.dashboard.study_index import StudyIndex
from evomerge.report import read_run
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.study import find_study
from tests.benchmarks.large_run import write_large_run


def read(path: Path) -> JournalIndex:
    index = JournalIndex(path)
    index.refresh()
    return index


def test_every_record_is_the_one_that_optuna_reads(folder: Path) -> None:
    run = folder / "runs" / "night"
    report, index = read_run(run), read(RunFolder(run).journal)
    assert len(report.records) == len(index.records()) > 20
    for record in report.records:
        assert index.full(record.number) == record
        assert index.methods(record.number) == tuple(
            dict.fromkeys(rule.method for rule in record.recipe.rules)
        )
    study = find_study(RunFolder(run).storage_of_run(None))
    assert study is not None
    assert index.attributes == study.user_attrs
    parameters = {t.number: t.params for t in study.get_trials() if t.params}
    assert index.parameters() == parameters


def test_a_journal_is_read_on_as_it_grows(folder: Path, tmp_path: Path) -> None:
    whole = RunFolder(folder / "runs" / "night").journal.read_bytes()
    path = tmp_path / "study.journal"
    index = JournalIndex(path)
    size = 0
    for end in (*range(0, len(whole), 40_001), len(whole)):
        path.write_bytes(whole[:end])  # most ends are in the middle of a line
        index.refresh()
        size = len(index.records())
    assert index.share == 1
    expected = read(path)
    assert index.records() == expected.records()
    assert size == len(expected.records())
    assert index.columns.keys == expected.columns.keys


def test_a_snapshot_tells_what_the_report_tells(folder: Path) -> None:
    run = folder / "runs" / "night"
    report = read_run(run)
    studies = (
        read(RunFolder(run).journal),
        StudyIndex(RunFolder(run).storage_of_run(None)),
    )
    for index in studies:
        index.refresh()
        snapshot = snapshot_of(RunFolder(run), index, 1)
        assert snapshot is not None
        assert [r.number for r in snapshot.report.ranked] == [r.number for r in report.ranked]
        assert snapshot.report.verdict == report.verdict
        winner = snapshot.winner
        assert winner is not None
        assert report.verdict is not None
        assert winner.number == report.verdict.winner
        for record in report.records:
            points = report.points(record)
            shown = snapshot.points[record.number]
            assert np.isnan(shown) if points is None else abs(shown - points) < 1e-6


def test_a_large_run_is_written_as_a_search_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "large"
    write_large_run(path, trials=30, layers=3, sources=2, tasks=4, documents=20, scored=2)
    report, index = read_run(path), read(RunFolder(path).journal)
    assert [index.full(r.number) for r in report.records] == list(report.records)
    assert {r.state for r in report.records} == {"complete"}
    study = find_study(RunFolder(path).storage_of_run(None))
    assert study is not None
    assert index.parameters([7])[7] == study.get_trials()[7].params


def test_one_unreadable_run_does_not_hide_the_others(folder: Path, tmp_path: Path) -> None:
    for name in ("torn", "whole"):
        (tmp_path / name).mkdir()
    journal = RunFolder(folder / "runs" / "night").journal.read_bytes()
    (tmp_path / "torn" / "study.journal").write_bytes(b'{"op_code":8,"trial_id":7}\n' + journal)
    (tmp_path / "whole" / "study.journal").write_bytes(journal)
    runs = Runs([tmp_path])
    runs.find()
    runs.refresh()
    torn, whole = runs
    assert torn.problem is not None
    assert whole.problem is None
    assert whole.snapshot is not None
    same = Run("again", RunFolder(tmp_path / "whole"))
    same.refresh()
    assert same.snapshot is not None
    records = same.snapshot.report.records
    assert replace(same.snapshot.report, folder=Path()).records == records

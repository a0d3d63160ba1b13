"""A search whose budget is a number of scored documents."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from evomerge import search
from evomerge.config import BudgetConfig, load_config
from evomerge.report import read_run
from evomerge.searching.loop import Budget
from evomerge.searching.run_folder import RunFolder
from evomerge.verbs import check

Small = Callable[..., Path]


def with_documents(config: Path, documents: int) -> Path:
    lines = [line for line in config.read_text().splitlines() if not line.startswith("budget")]
    config.write_text("\n".join([*lines, f"budget: {{documents: {documents}}}", ""]))
    return config


def test_no_trial_starts_once_the_documents_are_spent_and_a_resume_counts_them(
    small: Small,
) -> None:
    lines: list[str] = []
    config = with_documents(small("sampler: random\nguide: none\nobjective: smooth\n"), 400)
    found = search(config, on_progress=lambda progress, record: lines.append(progress.line()))
    report = read_run(found.folder)
    in_trials = [int(line.partition(" · ")[2].partition("/400 documents")[0]) for line in lines]
    assert in_trials[-2] < 400 <= in_trials[-1]
    assert in_trials[-1] - in_trials[-2] == 14
    assert in_trials[-1] <= sum(report.documents()["search"].values())
    assert "0:00:00 left" in lines[-1]

    search(config)
    assert read_run(found.folder).records == report.records
    lines.clear()
    search(
        with_documents(config, 480),
        on_progress=lambda progress, record: lines.append(progress.line()),
    )
    after = read_run(found.folder)
    assert after.records[: len(report.records)] == report.records
    assert len(after.records) > len(report.records)
    in_trials = [int(line.partition(" · ")[2].partition("/480 documents")[0]) for line in lines]
    assert in_trials[0] == sum(report.documents()["search"].values())
    assert in_trials[-2] < 480 <= in_trials[-1]


def test_repeats_cost_nothing_and_end_the_search(small: Small) -> None:
    text = "sampler: random\nobjective: metric\n"
    config = with_documents(small(text, methods="linear"), 100_000)
    config.write_text(
        config.read_text().replace("methods: [linear]", "methods: [linear], ranges: {weight: 1}")
    )
    folder = search(config).folder
    assert "proposals in a row were known already" in RunFolder(folder).log.read_text()
    report = read_run(folder)
    assert len(report.records) < 300
    assert report.verdict is not None


def test_the_forecast_counts_trials_scored_in_full(small: Small) -> None:
    path = with_documents(small(), 100)  # 14 search documents, of which each trial scores one kind
    found = check(path, probe=False)
    assert found.forecast() == 8
    assert load_config(path).config.budget.trial_limit() is None
    assert Budget(trials=5, documents=100).full_trials(14) == 5
    assert Budget(deadline=datetime.now() + timedelta(hours=1)).full_trials(14) is None


@pytest.mark.parametrize(("spent", "over"), [((4, 99), False), ((5, 0), True), ((0, 100), True)])
def test_whichever_limit_comes_first_counts(spent: tuple[int, int], over: bool) -> None:
    assert Budget(trials=5, documents=100).spent(*spent) is over
    assert BudgetConfig(trials=5, documents=100).trial_limit() == 5


def test_progress_tells_nothing_of_documents_without_such_a_budget(small: Small) -> None:
    lines: list[str] = []
    search(small(trials=13), on_progress=lambda p, record: lines.append(p.line()))
    assert "documents" not in lines[0]

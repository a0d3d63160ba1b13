"""Early stopping and the smooth objective in whole searches of the quickstart family."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge import UserError, load_config, search
from evomerge.describe import describe_check, describe_run
from evomerge.report import read_run
from evomerge.run_picture import draw_run
from evomerge.scoring.scorecard import SMOOTH, read_documents
from evomerge.searching.progress import Progress
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.study import HISTORY, find_study
from evomerge.verbs import check

Small = Callable[..., Path]
TASKS = Path(__file__).parent.parent / "configs" / "quickstart" / "tasks"
STOPPING = (
    "sampler: random\nobjective: metric\nearly_stopping: {minimum: 10, blocks: 4, level: 0.2}\n"
)


def with_more_documents(config: Path) -> Path:
    text = config.read_text().replace("limit: 16", "limit: 48").replace("limit: 12", "limit: 40")
    config.write_text(text)
    return config


def test_pruned_trials_are_kept_by_a_resume_and_a_fork_and_cannot_win(
    small: Small, tmp_path: Path
) -> None:
    lines: list[str] = []

    def on_progress(progress: Progress, record: object) -> None:
        lines.append(progress.line())

    first = search(with_more_documents(small(STOPPING, trials=21)), on_progress=on_progress)
    report = read_run(first.folder)
    pruned = [record for record in report.records if record.state == "pruned"]
    assert 2 <= len(pruned) <= 18
    assert report.counts() == {"complete": 21 - len(pruned), "pruned": len(pruned)}
    assert all(record.value is None for record in pruned)
    models = ("base", "dial", "past")
    assert not {record.baseline for record in pruned} & set(models)
    best = max(record.value or 0.0 for record in report.records)
    for record in pruned:
        partial = read_documents(RunFolder(first.folder).documents("search", record.number))
        count = sum(len(scores.documents) for scores in partial.values())
        assert record.documents == {"metric": count}
        assert record.share == pytest.approx(count / 44)
        assert 0 < count < 44
        assert record.estimate is not None
        assert record.estimate < best
        assert record.pruned in ("race", "halving")
    assert first.verdict is not None
    assert report.by_number[first.verdict.winner].state == "complete"
    plain = {record.number for record in report.records if record.baseline is not None}
    assert plain <= report.holdout.keys()  # given up or not
    assert not {record.number for record in pruned} & (report.holdout.keys() - plain)
    assert f"{len(pruned)} pruned, " in lines[-1]
    status = describe_run(first.folder)
    assert f"early stopping: {len(pruned)} pruned (" in status
    total = sum(record.documents.get("metric", 0) for record in report.records)
    smooth = 44 * len(models)
    assert f"documents scored: {total} search metric, {smooth} search smooth" in status
    draw_run(first.folder, tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000

    search(with_more_documents(small(STOPPING, trials=23)))
    after = read_run(first.folder)
    assert after.records[:21] == report.records
    assert len(after.records) == 23
    changed = small(STOPPING + "seed: 7\n", trials=23)
    forked = read_run(search(with_more_documents(changed), fork=True).folder)
    estimates = [r.estimate for r in after.records if r.estimate is not None]
    carried = [record.estimate for record in forked.records if record.estimate is not None]
    assert carried[: len(estimates)] == estimates
    text = changed.read_text().replace("minimum: 10", "minimum: 40").replace("seed: 7", "seed: 0")
    changed.write_text(text)
    with pytest.raises(UserError, match=r"blocks: 4 -> 1"):
        search(changed)


def test_a_kill_loses_no_pruned_trial(small: Small) -> None:
    config = with_more_documents(small(STOPPING, trials=400))
    folder = load_config(config).output()
    process = subprocess.Popen(
        [sys.executable, "-m", "evomerge", "search", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list(folder.glob("search/*.npz"))) < 17:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = {r.number: r for r in read_run(folder).records if r.state in ("complete", "pruned")}
    assert "pruned" in {record.state for record in before.values()}
    search(with_more_documents(small(STOPPING, trials=len(before) + 3)))
    after = {record.number: record for record in read_run(folder).records}
    assert before.items() <= after.items()
    assert sum(r.state in ("complete", "pruned") for r in after.values()) == len(before) + 3


def test_both_climbs_the_smooth_metrics_and_chooses_by_the_tasks_own(small: Small) -> None:
    outcome = search(small("objective: both\nguide: none\nsampler: random\n", trials=24))
    report = read_run(outcome.folder)
    assert outcome.verdict is not None
    scored = [record for record in report.records if record.value is not None]
    leaders = sorted(scored, key=lambda record: -(record.value or 0.0))
    distinct = {record.fingerprint: record for record in reversed(leaders)}
    eight = sorted(distinct.values(), key=lambda r: (-(r.value or 0.0), r.number))[:8]
    points = {record.number: report.points(record) for record in eight}
    assert None not in points.values()
    models = ("base", "dial", "past")
    plain = [report.points(record) for record in scored if record.baseline in models]
    assert None not in plain
    winner = report.by_number[outcome.verdict.winner]
    best = max(value for value in (*points.values(), *plain) if value is not None)
    assert report.points(winner) == best
    assert outcome.verdict.optimism_unit == "points"
    held = report.goal.points.value(report.holdout[winner.number])
    assert outcome.verdict.optimism == pytest.approx(best - held)
    # What was scored after a trial's end stands beside what its trial scored.
    for record in eight:
        kept = read_documents(RunFolder(outcome.folder).documents("search", record.number))
        assert kept["past"].values.keys() == {SMOOTH, "exact_match,none"}
    own = [record for record in report.records if record.baseline is None]
    unknown = [record for record in own if report.points(record) is None]
    assert all(record.documents == {"smooth": 14} for record in unknown)
    assert unknown, "not every trial's answers are generated"
    status = describe_run(outcome.folder)
    assert "search nats" in status


def test_multiple_choice_has_its_points_from_the_passes_of_the_smooth_metric(
    small: Small,
) -> None:
    config = small("objective: both\nguide: none\nsampler: random\n", trials=16)
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("  past: {f")))
    report = read_run(search(config).folder)
    assert list(report.goal.points.targets) == ["capital"]
    own = [r for r in report.records if r.baseline is None and r.state == "complete"]
    assert own
    assert all(record.documents == {"smooth": 8} for record in own if record.documents)
    assert None not in [report.points(record) for record in own]


def test_smooth_trials_generate_no_answers_and_are_told_in_nats(small: Small) -> None:
    lines: list[str] = []
    outcome = search(
        small("objective: smooth\nguide: none\nsampler: random\n", trials=15),
        on_progress=lambda progress, record: lines.append(progress.line()),
    )
    report = read_run(outcome.folder)
    assert outcome.verdict is not None
    values = {r.number: r.value for r in report.records if r.value is not None}
    assert values[outcome.verdict.winner] == max(values.values())
    for record in report.records:
        scored = {(m.task, m.name) for m in record.metrics}
        assert (("past", "exact_match,none") in scored) == (
            record.baseline in ("base", "dial", "past")
        )
        assert ("past", SMOOTH) in scored
    assert outcome.verdict.optimism_unit == "nats"
    assert " nats (" in lines[-1]
    assert "nats from that" in describe_run(outcome.folder)
    log = RunFolder(outcome.folder).log.read_text()
    assert "objective: smooth: as configured" in log


def test_nothing_is_stopped_early_where_a_metric_is_no_mean(small: Small, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    shutil.copy(TASKS / "capital.jsonl", folder)
    text = (TASKS / "capital.yaml").read_text().replace("metric: acc", "metric: mcc")
    text = text.replace("aggregation: mean", "aggregation: matthews_corrcoef")
    (folder / "capital.yaml").write_text(text)
    config = with_more_documents(small(STOPPING, trials=17))
    content = config.read_text().replace(
        f"capital: {{folder: {TASKS}", f"capital: {{folder: {folder}"
    )
    assert str(folder) in content
    config.write_text(content)
    outcome = search(config)
    report = read_run(outcome.folder)
    assert report.goal.points.targets["capital"].metric == "mcc,none"
    assert report.counts() == {"complete": 17}
    assert "mcc,none of task 'capital' is not a mean" in RunFolder(outcome.folder).log.read_text()
    study = find_study(RunFolder(outcome.folder).storage_of_run(None))
    assert study is not None
    assert "mcc" in study.user_attrs[HISTORY][-1]["early stopping is off"]


def test_a_task_without_references_cannot_be_climbed_smoothly(small: Small, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    shutil.copy(TASKS / "past.jsonl", folder)
    text = (TASKS / "past.yaml").read_text()
    (folder / "past.yaml").write_text(text.replace('"{{answer}}"', '""'))

    def without_references(objective: str) -> Path:
        config = small(objective)
        content = config.read_text().replace(
            f"past: {{folder: {TASKS}", f"past: {{folder: {folder}"
        )
        assert str(folder) in content
        config.write_text(content)
        return config

    for kind in ("smooth", "both"):
        with pytest.raises(UserError, match=rf"objective: {kind}: needs a reference .* 'past'"):
            check(without_references(f"objective: {kind}\n"), probe=False)
    found = check(without_references("early_stopping: false\n"), probe=False)
    assert found.bench.goal.kind == "metric"
    assert "stopping off, as configured" in describe_check(found)


def test_early_stopping_is_a_switch_or_a_mapping(small: Small) -> None:
    def read(text: str) -> object:
        return load_config(small(f"early_stopping: {text}\n")).config.early_stopping

    assert read("false") is None
    assert read("true") == load_config(small()).config.early_stopping
    found = load_config(small("early_stopping: {halving: false, level: 0.1}\n"))
    assert found.config.early_stopping is not None
    assert found.config.early_stopping.halving is False
    for wrong in ("{halving: 1}", "{level: 0}", "{blocks: 1}", "{levels: 0.1}", "often"):
        with pytest.raises(UserError, match="early_stopping"):
            read(wrong)

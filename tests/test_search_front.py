"""Several objectives in whole searches of the quickstart family."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge import Recipe, UserError, export, load_config, search
from evomerge.describe import describe_check, describe_outcome, describe_run
from evomerge.report import read_run
from evomerge.run_picture import draw_run
from evomerge.searching.progress import Progress
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.study import find_study
from evomerge.verbs import check

Small = Callable[..., Path]
TWO = "objectives: [capital, past]\n"


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(x >= y for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("objective", ["metric", "both"])
def test_a_front_is_found_scored_drawn_and_exported_by_choice(
    small: Small, tmp_path: Path, objective: str
) -> None:
    lines: list[str] = []

    def on_progress(progress: Progress, record: object) -> None:
        lines.append(progress.line())

    text = f"objective: {objective}\nsampler: tpe\n{TWO}"
    config = small(text, trials=26)
    config.write_text(config.read_text().replace("finalists: 1\n", ""))
    outcome = search(config, on_progress=on_progress)
    report = read_run(outcome.folder)
    assert report.counts() == {"complete": 26}
    assert "early stopping: off: a trial that is behind in one" in (
        RunFolder(outcome.folder).log.read_text()
    )
    study = find_study(RunFolder(outcome.folder).storage_of_run(None))
    assert study is not None
    assert len(study.directions) == 2
    assert study.metric_names == ["capital", "past"]
    for record in report.records:
        told = tuple(report.goal.values(report.goal.climbed, record.metrics) or ())
        assert record.values == told == tuple(study.trials[record.number].values)

    points = {
        record.number: tuple(own)
        for record in report.records
        if (own := report.goal.values(report.goal.points, record.metrics)) is not None
    }
    members = [record.number for record in report.front]
    for number, own in points.items():
        above = any(dominates(points[member], own) or points[member] == own for member in members)
        assert above or number in members
        assert not any(dominates(own, points[member]) for member in members)

    assert outcome.front is not None
    assert outcome.front == report.front_verdict
    assert set(outcome.front.members) == set(members)
    assert set(members) <= report.holdout.keys()
    for place, (name, verdict) in enumerate(outcome.front.verdicts.items()):
        best = max(points[member][place] for member in members)
        assert points[verdict.winner][place] == best
        there = report.holdout[verdict.winner][name].value
        assert verdict.optimism == pytest.approx(best - there)
        plain = [report.holdout[r.number][name].value for r in report.records if r.baseline]
        if report.by_number[verdict.winner].baseline is None:
            assert verdict.gain.value == pytest.approx(there - max(plain))
    assert report.state() == "finished"
    status = describe_run(outcome.folder)
    for sentence in outcome.front.sentences({r.number: r.name for r in report.records}):
        assert sentence in status
    assert "front of " in lines[-1]
    assert "--knee" in describe_outcome(outcome)
    assert {"capital value", "past value"} <= set(report.trials().columns)
    draw_run(outcome.folder, tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000

    with pytest.raises(UserError, match="2 objectives and no single winner") as error:
        export(outcome.folder, tmp_path / "out")
    assert all(f"--trial {member}" in str(error.value) for member in members)
    with pytest.raises(UserError, match="expected one of them"):
        export(outcome.folder, tmp_path / "out", trial=members[0], knee=True)
    folder = export(outcome.folder, tmp_path / "out", knee=True)
    knee = report.by_number[outcome.front.knee]
    assert Recipe.read(folder / "recipe.yaml").fingerprint() == knee.fingerprint
    assert "the knee of a Pareto front" in (folder / "README.md").read_text()
    other = export(outcome.folder, tmp_path / "other", trial=members[0])
    assert Recipe.read(other / "recipe.yaml").fingerprint() == (
        report.by_number[members[0]].fingerprint
    )


def test_a_front_is_resumed_and_forked_and_no_more_of_it_is_scored_than_asked(
    small: Small,
) -> None:
    text = f"objective: smooth\nsampler: random\n{TWO}"
    first = read_run(search(small(text, trials=14)).folder)
    outcome = search(small(text, trials=22))
    report = read_run(outcome.folder)
    assert report.records[:14] == first.records
    assert outcome.front is not None
    assert len(report.front) > 3
    plain = {record.number for record in report.records if record.baseline}
    assert len(set(outcome.front.members) - plain) <= 2, "one for each search"
    forked = read_run(search(small(text + "seed: 4\n", trials=23), fork=True).folder)
    assert [r.values for r in forked.records[:22]] == [r.values for r in report.records]
    changed = text.replace("[capital, past]", "{one: [past], two: [capital]}")
    with pytest.raises(UserError, match=r"objectives.capital: \['capital'\] -> None"):
        search(small(changed, trials=22))


def test_a_kill_loses_no_trial_of_a_front(small: Small) -> None:
    config = small(f"sampler: random\nobjective: metric\n{TWO}", trials=400)
    folder = load_config(config).output()
    process = subprocess.Popen(
        [sys.executable, "-m", "evomerge", "search", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list(folder.glob("search/*.npz"))) < 15:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {r.number: r.values for r in read_run(folder).records if r.values}
    count = len(before) + 3
    search(small(f"sampler: random\nobjective: metric\n{TWO}", trials=count))
    after = {r.number: r.values for r in read_run(folder).records if r.values}
    assert before.items() <= after.items()
    assert len(after) == count


def test_limits_and_scales_hold_for_every_objective(small: Small) -> None:
    text = "objective: smooth\nsampler: nsga2\nnormalise: share\n"
    text += "constraints: {past: {below_base: -10}}\n"
    outcome = search(small(text + TWO, trials=24))
    report = read_run(outcome.folder)
    base = report.records[0]
    assert base.baseline == "base"
    assert base.values == (0.0, 0.0)
    assert report.front
    assert all(record.feasible for record in report.front)
    assert base.number not in {record.number for record in report.front}
    assert outcome.front is not None
    assert {limit.trial for limit in report.limits} == set(outcome.front.members)
    assert all(verdict.optimism_unit == "share" for verdict in outcome.front.verdicts.values())


def test_mistakes_with_objectives_are_named(small: Small, tmp_path: Path) -> None:
    for text, message in (
        ("objectives: [past]", "expected two or more"),
        ("objectives: [past, capitol]", "'capitol': did you mean 'capital'"),
        ("objectives: {a: [past], b: [past, capital]}", "'past' stands in several places"),
        ("objectives: {a: [past], b: []}", "objectives.b"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(small(text + "\n"))
    with pytest.raises(UserError, match="cma_es climbs a single objective, and there are 2"):
        check(small("sampler: cma_es\n" + TWO), probe=False)
    found = describe_check(check(small(TWO, trials=60), probe=False))
    assert "front    capital: capital" in found
    assert "sampler  gp: 2 objectives, 60 trials" in found
    outcome = search(small("sampler: random\n", trials=12))
    with pytest.raises(UserError, match="one objective, so its front has no knee"):
        export(outcome.folder, tmp_path / "out", knee=True)

"""Normalised objectives and constraints in whole searches of the quickstart family."""

from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge import UserError, export, load_config, search
from evomerge.describe import describe_check, describe_run
from evomerge.report import RunReport, read_run
from evomerge.run_picture import draw_run
from evomerge.searching.progress import Progress
from evomerge.searching.record import RESULT, SLOPES
from evomerge.searching.references import REFERENCES
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.study import find_study
from evomerge.verbs import check

Small = Callable[..., Path]
NOTES = "capital Turkey: Ankara\npast drug: drugged\npast walk: walked\ncapital France: Paris\n"
RANDOM = "objective: metric\nsampler: random\n"
STOPPING = "early_stopping: {minimum: 3, blocks: 4, level: 0.2}\n"


@pytest.fixture
def mixed(small: Small, tmp_path: Path) -> Small:
    """A search of accuracies and of bits per byte."""

    def write(text: str = "", *, trials: int = 16) -> Path:
        (tmp_path / "notes.txt").write_text(NOTES * 150)
        config = small(text, trials=trials)
        task = "  notes: {scorer: bits_per_byte, file: notes.txt}\n"
        config.write_text(config.read_text().replace("tasks:\n", "tasks:\n" + task))
        return config

    return write


def values(report: RunReport) -> dict[int, float]:
    return {record.number: record.value for record in report.records if record.value is not None}


def test_unlike_metrics_count_in_units_of_the_sources_spread(mixed: Small, tmp_path: Path) -> None:
    assert "scale    spread: bits_per_byte,none of task 'notes'" in describe_check(
        check(mixed(RANDOM), probe=False)
    )
    outcome = search(mixed(RANDOM + STOPPING, trials=20))
    report = read_run(outcome.folder)
    assert outcome.verdict is not None
    by_name = {record.baseline: record for record in report.records}
    assert by_name["base"].value == 0
    assert set(report.goal.points.scales) == {"notes", "capital", "past"}
    spread = {}
    for task in report.goal.points.targets:
        base, *sources = (
            report.goal.points.found(by_name[name].metrics) for name in ("base", "dial", "past")
        )
        assert base is not None
        far = [abs(source[task].value - base[task].value) for source in sources if source]
        spread[task] = report.goal.points.scales[task].unit
        assert spread[task] == pytest.approx(max(far)) or "no source differs" in str(
            report.scale_notes
        )
    assert spread["notes"] > 0.3
    for record in report.records:
        if record.value is not None:
            mean = 0.0
            for metric in (report.goal.points.found(record.metrics) or {}).values():
                zero = report.goal.points.scales[metric.task].zero
                sign = 1 if metric.higher_is_better else -1
                mean += (sign * metric.value - zero) / spread[metric.task] / 3
            assert record.value == pytest.approx(mean)
    assert any(record.estimate is not None for record in report.records)
    status = describe_run(outcome.folder)
    assert "mean in % of spread" in status
    assert "% of spread from that" in status
    draw_run(outcome.folder, tmp_path / "run.png")


@pytest.mark.parametrize("objective", ["metric", "both"])
def test_values_wait_for_base_and_sources_and_a_resume_tells_them(
    mixed: Small, objective: str
) -> None:
    text = f"objective: {objective}\nsampler: random\nnormalise: share\n"
    whole = read_run(search(mixed(text, trials=14)).folder)
    folder = RunFolder(whole.folder)
    folder.path.rename(folder.path.with_name("whole"))
    first = search(mixed(text, trials=2))
    assert first.verdict is None
    stopped = read_run(first.folder)
    assert stopped.counts()["scored"] == 2
    assert not values(stopped)
    assert "2 scored" in describe_run(first.folder)
    assert "no trial has a value" in folder.log.read_text()
    if objective == "metric":  # as if killed once the scales were found, before any value was told
        known, study = (
            find_study(RunFolder(path).storage_of_run(None))
            for path in (folder.path.with_name("whole"), first.folder)
        )
        assert known is not None
        assert study is not None
        study.set_user_attr(REFERENCES, known.user_attrs[REFERENCES])
    search(mixed(text, trials=14))
    resumed = read_run(first.folder)
    assert values(resumed) == values(whole)
    assert resumed.goal == whole.goal
    assert resumed.records[0].seconds == stopped.records[0].seconds, "scored once"
    forked = search(mixed(text + "seed: 3\n", trials=15), fork=True)
    carried = read_run(forked.folder)
    assert values(carried).items() >= values(whole).items()
    assert carried.goal == whole.goal


def test_steps_along_the_gradient_are_taken_in_scaled_units(small: Small) -> None:
    def slopes(kind: str) -> tuple[dict[str, float], RunReport]:
        config = small(f"objective: smooth\nnormalise: {kind}\n", trials=17, name=kind)
        config.write_text(config.read_text().replace("limit: 16", "limit: 16, weight: 0"))
        folder = search(config).folder
        study = find_study(RunFolder(folder).storage_of_run(None))
        assert study is not None
        first = next(t for t in study.trials if SLOPES in t.user_attrs.get(RESULT, {}))
        return first.user_attrs[RESULT][SLOPES], read_run(folder)

    (raw, _), (scaled, after) = slopes("raw"), slopes("spread")
    unit = after.goal.smooth_scales["past"].unit
    assert unit != pytest.approx(1, abs=0.1)
    assert scaled == pytest.approx({name: slope / unit for name, slope in raw.items()}, rel=1e-4)


def test_a_run_without_its_base_says_what_it_needs(
    mixed: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.errors import CandidateError
    from evomerge.scoring.bits_per_byte import BitsPerByteScoring

    def failing(self: object, documents: object) -> None:
        raise CandidateError("no luck")

    monkeypatch.setattr(BitsPerByteScoring, "add", failing)
    with pytest.raises(UserError, match=r"normalise: spread, .* these failed: \{'base': 'no luck'"):
        search(mixed(RANDOM))


@pytest.mark.parametrize("objective", ["metric", "smooth", "both"])
def test_a_trial_that_breaks_a_limit_never_wins(
    small: Small, tmp_path: Path, objective: str
) -> None:
    text = f"objective: {objective}\nsampler: tpe\n{STOPPING}"
    limit = "constraints: {past: {below_base: -20}}\n"
    lines: list[str] = []

    def on_progress(progress: Progress, record: object) -> None:
        lines.append(progress.line())

    outcome = search(small(text + limit, trials=24), on_progress=on_progress)
    assert outcome.verdict is not None
    report = read_run(outcome.folder)
    full = [record for record in report.records if record.value is not None]
    base = next(record for record in full if record.baseline == "base")
    of_base = {m.task: m.value for m in base.metrics if m.name == "exact_match,none"}["past"]
    for record in full:
        own = {m.task: m.value for m in record.metrics if m.name == "exact_match,none"}["past"]
        assert record.violations == {"past": pytest.approx(of_base + 0.2 - own)}
        assert record.feasible == (own >= of_base + 0.2 - 1e-9)
    broken = [record for record in full if not record.feasible]
    assert base in broken
    assert len(broken) < len(full)
    assert {record.number for record in report.ranked}.isdisjoint(r.number for r in broken)
    assert report.by_number[outcome.verdict.winner].feasible
    assert report.by_number[outcome.verdict.opponent].feasible
    assert all(
        report.by_number[r.pruned_against].feasible for r in report.records if r.pruned_against
    )
    assert f"{len(broken)} break constraints" in lines[-1]
    status = describe_run(outcome.folder)
    assert (
        f"constraints: past at least 20 points above the base; broken by {len(broken)} of "
        f"{len(full)} trials" in status
    )
    assert len(report.limits) == 1
    assert report.limits[0].sentence() in status
    held = report.holdout[outcome.verdict.winner]["past"].value
    of_base = report.holdout[base.number]["past"].value
    assert report.limits[0].violation == pytest.approx(of_base + 0.2 - held)
    study = find_study(RunFolder(outcome.folder).storage_of_run(None))
    assert study is not None
    assert [t.constraints for t in study.trials if t.number == base.number] == [base.violations]
    draw_run(outcome.folder, tmp_path / "run.png")
    with pytest.raises(UserError, match=r"constraints.past: .*20 points .* -> .*10 points"):
        search(small(text + limit.replace("-20", "-10"), trials=24))


def test_limits_that_no_trial_keeps_leave_no_winner(small: Small, tmp_path: Path) -> None:
    config = small(RANDOM + "constraints: {past: {at_least: 1.0}}\n", trials=14)
    config.write_text(config.read_text().replace("limit: 16", "limit: 16, weight: 0"))
    outcome = search(config)
    assert outcome.verdict is None
    report = read_run(outcome.folder)
    for record in report.records:
        if record.value is not None:
            own = {m.task: m.value for m in record.metrics if m.name == "exact_match,none"}
            assert record.value == own["past"], "capital has no weight"
    assert "no trial keeps the constraints yet" in describe_run(outcome.folder)
    with pytest.raises(UserError, match=r"no trial keeps the constraints \(past at least 1\)"):
        export(outcome.folder, tmp_path / "out")
    assert (export(outcome.folder, tmp_path / "out", trial=1) / "recipe.yaml").exists()


def test_mistakes_in_limits_are_named(small: Small) -> None:
    for text, message in (
        ("constraints: {past: {}}", r"constraints.past: expected one of below_base .* got none"),
        ("constraints: {past: {below_base: 1, at_least: 0.2}}", "expected one of below_base"),
        ("constraints: {past: {above: 1}}", r"constraints.past.above"),
        ("normalise: gains", "normalise"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(small(text + "\n"))
    with pytest.raises(UserError, match=r"constraints.pas: did you mean 'past'"):
        check(small("constraints: {pas: {at_least: 0.5}}\n"), probe=False)
    config = small()
    text = config.read_text().replace("limit: 16", "weight: 0").replace("limit: 12", "weight: 0")
    config.write_text(text)
    with pytest.raises(UserError, match="tasks: every weight is 0"):
        load_config(config)

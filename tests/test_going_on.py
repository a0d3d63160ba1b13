"""Searches that go on from another: start points, and scores that are not computed again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge import UserError, export, load_config, score, search
from evomerge.report import RunReport, read_run
from evomerge.searching.record import TrialRecord
from evomerge.searching.run_folder import RunFolder
from tests.conftest import FAMILY

Small = Callable[..., Path]
PLAIN = "guide: none\nsampler: random\n"


def changed(path: Path, *changes: tuple[str, str]) -> Path:
    text = path.read_text()
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    path.write_text(text)
    return path


def named(report: RunReport, name: str) -> TrialRecord:
    return next(record for record in report.records if record.baseline == name)


def scored_anew(record: TrialRecord) -> int:
    return sum(record.documents.values())


@pytest.fixture
def before(small: Small) -> RunReport:
    """A finished search of two sources."""
    return read_run(search(small(PLAIN, trials=17, name="before")).folder)


def test_one_more_source_goes_on_from_the_old_winners(
    small: Small, before: RunReport, tmp_path: Path
) -> None:
    more = small(PLAIN + "start_from: before\n", trials=20, depth="layers", name="more")
    changed(more, ("sources:\n", f"sources:\n  capital: {FAMILY}/models/capital\n"))
    report = read_run(search(more).folder)
    assert list(report.records[0].recipe.sources) == ["capital", "dial", "past"]
    for name in ("base", "dial", "past"):
        assert named(report, name).value == named(before, name).value
        assert scored_anew(named(report, name)) == 0
    assert scored_anew(named(report, "capital")) > 0
    best = next(r for r in before.ranked if r.baseline is None)
    start = named(report, f"start {best.name} of before")
    assert start.value == best.value
    assert scored_anew(start) == 0
    assert {rule.parameters["weight"]["capital"] for rule in start.recipe.rules} == {0.0}
    assert "start point of the sampler" in RunFolder(more.with_suffix("")).log.read_text()
    assert set(report.holdout) & set(before.holdout)
    # What was taken over is what would have been computed.
    again = {(m.task, m.name): m.value for m in score(start.recipe, more).metrics}
    assert {(m.task, m.name): m.value for m in start.metrics} == pytest.approx(again, abs=1e-6)

    # A resume needs the old run no more, and does not read its winners again.
    (tmp_path / "before").rename(tmp_path / "gone")
    changed(more, ("start_from: before\n", ""), ("trials: 20", "trials: 21"))
    resumed = read_run(search(more).folder)
    assert resumed.records[:20] == report.records
    assert "is no longer there" in RunFolder(resumed.folder).log.read_text()


def test_one_source_fewer_under_another_name(small: Small, before: RunReport) -> None:
    fewer = small(PLAIN + "start_from: [before]\n", trials=15, name="fewer")
    text = fewer.read_text()
    line = next(line for line in text.splitlines() if line.startswith("  past: /"))
    fewer.write_text(text.replace(line + "\n", "").replace("  dial: /", "  codes: /"))
    report = read_run(search(fewer).folder)
    starts = [r for r in report.records if (r.baseline or "").startswith("start")]
    assert {source for r in starts for rule in r.recipe.rules for source in rule.sources} == {
        "codes"
    }
    assert named(report, "codes").value == named(before, "dial").value
    assert scored_anew(named(report, "codes")) == 0
    assert "without past, which is no source here" in RunFolder(report.folder).log.read_text()


@pytest.mark.parametrize("fork", [False, True])
def test_one_more_task_scores_only_its_documents(small: Small, fork: bool) -> None:
    def one_task(path: Path) -> Path:
        line = next(x for x in path.read_text().splitlines() if x.startswith("  past: {f"))
        return changed(path, (line + "\n", ""))

    before = read_run(search(one_task(small(PLAIN, trials=17, name="before"))).folder)
    if fork:
        more = small(PLAIN, trials=17, name="before")
    else:
        more = small(PLAIN + "start_from: before\n", trials=17, name="more")
    outcome = search(more, fork=fork)
    report = read_run(outcome.folder)
    assert report.folder != before.folder
    base = named(report, "base")
    assert base.documents == {"metric": 6, "smooth": 6}
    assert base.remarks == (f"scores of capital from {before.folder.resolve()}",)
    again = score(base.recipe, more)
    own = {(m.task, m.name): m.value for m in base.metrics}
    assert own == pytest.approx({(m.task, m.name): m.value for m in again.metrics}, abs=1e-6)
    (start,) = [r for r in report.records if (r.baseline or "").startswith("start ")]
    assert start.state == "complete"
    assert set(start.documents.values()) == {6}
    log = RunFolder(report.folder).log.read_text()
    assert "task past: is new" in log
    assert outcome.verdict is not None


def test_a_recipe_outside_of_the_space_is_tried(
    small: Small, before: RunReport, tmp_path: Path
) -> None:
    fine = search(small(PLAIN + "seed: 3\n", trials=15, depth="layers", name="fine"))
    best = next(r for r in read_run(fine.folder).ranked if r.baseline is None)
    export(fine.folder, tmp_path / "winner", trial=best.number)
    config = small(PLAIN + "start_from: winner/recipe.yaml\n", trials=14, name="coarse")
    report = read_run(search(config).folder)
    start = named(report, "start winner")
    assert start.recipe.rules == best.recipe.rules
    assert "is no start point of the sampler" in RunFolder(report.folder).log.read_text()


def test_other_models_and_other_splits_are_refused(small: Small, before: RunReport) -> None:
    config = small(PLAIN + "start_from: before\n", name="after")
    text = config.read_text()

    def refused(*changes: tuple[str, str]) -> str:
        config.write_text(text)
        with pytest.raises(UserError) as caught:
            search(changed(config, *changes))
        return str(caught.value)

    assert "expected a search or recipe of the same base" in refused(
        ("models/base", "models/sort7")
    )
    assert "another model called dial" in refused(("models/dial", "models/sort7"))
    message = refused(("finalists: 1", "finalists: 1\ndocuments: {seed: 5}"))
    assert "documents of task 'capital' that are held out here" in message
    assert "seed: 0" in message
    with pytest.raises(UserError, match="start_from: nowhere is not there"):
        load_config(changed(config, ("start_from: before", "start_from: nowhere")))

"""What status, check, report and model card say of scores that are built on cut-off answers."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from evomerge import export, load_config, score, search
from evomerge.describe import describe_check, describe_run, describe_scores
from evomerge.report import read_run
from evomerge.run_picture import draw_run
from evomerge.searching.progress import Progress
from evomerge.searching.record import TrialRecord
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.study import PUBLISHED, find_study
from evomerge.verbs import check

Small = Callable[..., Path]
TASKS = Path(__file__).parent.parent / "configs" / "quickstart" / "tasks"
CUT = "past: 100 % of answers were cut off at 1 token"


@pytest.fixture
def cut(small: Small, tmp_path: Path) -> Path:
    """A small search whose past tenses are cut off after one letter."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    task = yaml.safe_load((TASKS / "past.yaml").read_text())
    task["generation_kwargs"]["max_gen_toks"] = 1
    (folder / "past.yaml").write_text(yaml.safe_dump(task))
    (folder / "past.jsonl").write_bytes((TASKS / "past.jsonl").read_bytes())
    path = small(trials=13)
    content = yaml.safe_load(path.read_text())
    content["tasks"]["past"]["folder"] = str(folder)
    content["objective"] = "metric"  # every trial generates answers
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_search_says_that_its_scores_are_built_on_cut_off_answers(
    cut: Path, tmp_path: Path
) -> None:
    checked = describe_check(check(cut))
    assert f"warning  {CUT}; raise max_gen_toks" in checked
    assert "answers  the base, past: 100 % cut off at 1 token, 0 % empty" in checked
    assert "cut off" not in describe_check(check(cut, probe=False))

    outcome = search(cut)
    assert outcome.verdict is not None
    report = read_run(outcome.folder)
    winner = report.by_number[outcome.verdict.winner]
    base = report.records[0]
    assert base.name == "base"
    answered = [record for record in report.records if record.answers]
    assert {"base", *base.recipe.sources} <= {record.baseline for record in answered}
    for record in answered:
        assert record.answers.keys() == {"past"}
        # Some candidates end at once instead: these have a second warning, of empty answers.
        doubt = report.warnings(record)[0]
        assert "of answers were cut off at 1 token" in doubt
        assert ("(base: 100 %)" in doubt) is (record != base)
    assert {answers["past"].answers for answers in report.holdout_answers.values()} == {6}

    lines = describe_run(outcome.folder).splitlines()
    marked = [line.split()[1] for line in lines if line.startswith(("!  ", "*!"))]
    assert len(marked) == len(report.holdout)
    assert any(line.startswith(f"! base: {CUT};") for line in lines)
    doubts = [f"  {doubt}" for doubt in report.warnings(winner)]
    assert lines[-1 - len(doubts) :] == ["But the winner's score is in doubt:", *doubts]
    log = RunFolder(outcome.folder).log.read_text()
    assert log.count("its score is in doubt: past: ") == len(answered)

    frame = report.trials()
    frame = frame[[record in answered for record in report.records]]
    assert frame["past cut_off"].tolist() == [r.answers["past"].cut_off for r in answered]
    assert frame["past cut_off"][0] == 1
    assert frame["past not_found"].isna().all()
    assert "capital cut_off" not in frame  # it generates nothing
    assert frame["warnings"].str.startswith("past: ").all()
    draw_run(outcome.folder, tmp_path / "run.svg")
    drawn = (tmp_path / "run.svg").read_text()
    assert "in doubt (evomerge status says why)" in drawn
    assert f"{winner.name} (in doubt)" in drawn

    card = (export(outcome.folder, tmp_path / "winner") / "README.md").read_text()
    assert f"These scores are in doubt:\n\n- {CUT}" in card
    assert f"warning: {CUT}" in describe_scores(score(tmp_path / "winner", cut))


def test_candidates_are_marked_before_the_end_too(cut: Path) -> None:
    class PowerFailureError(Exception):
        pass

    def fail_after_three(progress: Progress, record: TrialRecord | None) -> None:
        if progress.done == 3:
            raise PowerFailureError

    with pytest.raises(PowerFailureError):
        search(cut, on_progress=fail_after_three)
    folder = load_config(cut).output()
    lines = describe_run(folder).splitlines()
    assert "search documents:" in lines
    assert len([line for line in lines if line.startswith(("! base  ", "! dial  "))]) == 2
    assert any(line.startswith("! ") and f": {CUT} (base: 100 %); raise" in line for line in lines)


def test_sound_answers_are_not_doubted(small: Small) -> None:
    config = small(trials=3)
    found = describe_check(check(config))
    assert "answers  the base, past: 0 % cut off at 16 tokens" in found
    assert "warning  past" not in found
    # 14 holdout documents show little: what they would show, and how many show two points.
    assert re.search(r"shows    the holdout shows a gain of \d\d\.\d points or more", found)
    assert re.search(r"warning  a gain of 2 points would probably not be shown: that needs", found)
    assert "public test sets" not in found
    unprobed = describe_check(check(config, probe=False))
    assert "points apart (at most, by a bound of the noise)" in unprobed
    outcome = search(config)
    assert read_run(outcome.folder).records[0].answers["past"].cut_off == 0
    assert not set(read_run(outcome.folder).trials()["warnings"]) - {""}
    assert "in doubt" not in describe_run(outcome.folder)
    assert "in doubt" not in RunFolder(outcome.folder).log.read_text()


def test_a_card_says_that_the_search_saw_a_public_test_set(small: Small, tmp_path: Path) -> None:
    outcome = search(small(trials=3))
    assert outcome.verdict is not None
    study = find_study(RunFolder(outcome.folder).storage_of_run(None))
    assert study is not None
    assert study.user_attrs[PUBLISHED] == {}
    card = (export(outcome.folder, tmp_path / "own") / "README.md").read_text()
    assert "Measured on holdout documents, which the search never saw:\n\n- No difference" in card
    assert "public test sets" not in card
    study.set_user_attr(PUBLISHED, {"past": "owner/data, split test"})
    card = (export(outcome.folder, tmp_path / "public") / "README.md").read_text()
    assert "It was searched on public test sets: past (owner/data, split test); on these" in card

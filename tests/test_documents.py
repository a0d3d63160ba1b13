"""What runs keep of documents and answers, and the documents gained and lost between trials."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from evomerge import UserError, load_config, search
from evomerge.documents import flips, read_questions
from evomerge.report import RunReport, read_run
from evomerge.scoring.bits_per_byte import METRIC
from evomerge.scoring.scorecard import read_answers, read_documents
from evomerge.searching.run_folder import RunFolder
from tests.conftest import FAMILY

Small = Callable[..., Path]
PLAIN = "guide: none\nsampler: random\n"
HOSTILE = "<script>alert('&amp;')</script> | ünïcödé \u202e \x00 \U0001f642 {{question}} NaN\n"
METRICS = {"dial": "exact_match,none", "capital": "acc,none", "past": "exact_match,none"}


def family(task: str) -> list[dict[str, object]]:
    lines = (FAMILY / "tasks" / f"{task}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def number(report: RunReport, name: str) -> int:
    return next(record.number for record in report.records if record.baseline == name)


@pytest.fixture
def config(small: Small) -> Path:
    path = small(PLAIN + "objective: metric\nearly_stopping: false\n", trials=9)
    tasks = f"tasks:\n  dial: {{folder: {FAMILY}/tasks, limit: 20}}\n"
    path.write_text(path.read_text().replace("tasks:\n", tasks))
    return path


def test_a_run_keeps_what_is_asked_and_what_was_answered(config: Path) -> None:
    report = read_run(search(config).folder)
    folder, questions = RunFolder(report.folder), read_questions(report.folder)
    assert list(questions.columns) == ["side", "question", "choices", "expected"]
    assert questions.groupby(level="task").size().to_dict() == {
        "capital": 16,
        "dial": 20,
        "past": 12,
    }
    for row in questions.itertuples():
        task, place = row.Index
        document = family(task)[place]
        choices, right = document.get("choices"), document["answer"]
        assert row.question == document["question"]
        assert row.choices == choices
        assert row.expected == (right if choices is None else choices[right])
    sides: tuple[tuple[str, list[int]], ...] = (
        ("search", [record.number for record in report.records if record.value is not None]),
        ("holdout", list(report.holdout)),
    )
    for side, trials in sides:
        assert trials
        for trial in trials:
            scores = read_documents(folder.documents(side, trial))
            answers = read_answers(folder.answers(side, trial))
            for task, metric in METRICS.items():
                own = scores[task]
                assert set(answers[task]) == set(own.documents)
                assert set(questions.loc[task].loc[list(own.documents), "side"]) == {side}
                for place, value in zip(own.documents, own.values[metric], strict=True):
                    expected = questions.loc[(task, place), "expected"]
                    assert (answers[task][place] == expected) == (value == 1)


def test_a_resume_writes_what_is_missing_and_leaves_what_is_there(config: Path) -> None:
    folder = RunFolder(search(config).folder)
    kept = read_questions(folder.path)
    folder.questions.unlink()
    with pytest.raises(UserError, match=r"documents.parquet: the documents' questions cannot be"):
        read_questions(folder.path)
    search(config)
    pd.testing.assert_frame_equal(read_questions(folder.path), kept)
    before = folder.questions.stat().st_ino
    search(config)
    assert folder.questions.stat().st_ino == before
    for damaged in (b"no parquet", None):
        if damaged is None:  # a task is missing
            kept.reset_index().query("task == 'past'").to_parquet(folder.questions, index=False)
        else:
            folder.questions.write_bytes(damaged)
        search(config)
        pd.testing.assert_frame_equal(read_questions(folder.path), kept)
    assert "cannot be read" in folder.log.read_text()


def test_flips_say_what_the_second_gained_and_lost(config: Path) -> None:
    report = read_run(search(config).folder)
    past, dial = number(report, "past"), number(report, "dial")
    found = flips(report.folder, past, dial)
    pd.testing.assert_frame_equal(found, flips(report, past, dial, other_folder=report.folder))
    folder, questions = RunFolder(report.folder), read_questions(report.folder)
    one, two = (read_documents(folder.documents("search", trial)) for trial in (past, dial))
    expected = {
        (task, place): (first, second)
        for task, metric in METRICS.items()
        for place, first, second in zip(
            one[task].documents, one[task].values[metric], two[task].values[metric], strict=True
        )
        if first != second
    }
    rows = {(row.task, row.document): row for row in found.itertuples()}
    assert rows.keys() == expected.keys()
    assert {row.change for row in rows.values()} == {"gained", "lost"}
    for place, row in rows.items():
        assert (row.first, row.second) == expected[place]
        assert row.metric == METRICS[row.task]
        assert row.change == ("gained" if row.second > row.first else "lost")
        for name in ("question", "choices", "expected"):
            assert getattr(row, name) == questions[name][place]
        right, wrong = row.second_answer, row.first_answer
        if row.change == "lost":
            right, wrong = wrong, right
        assert right == row.expected != wrong
    order = [(list(METRICS).index(r.task), r.change, r.document) for r in found.itertuples()]
    assert order == sorted(order)
    back = flips(report.folder, dial, past)
    assert set(zip(back.task, back.document, strict=True)) == set(rows)
    turned = {"gained": "lost", "lost": "gained"}
    assert all(
        turned[row.change] == rows[row.task, row.document].change for row in back.itertuples()
    )
    assert flips(report.folder, past, past).empty
    held = flips(report.folder, past, dial, side="holdout")
    assert not held.empty
    for row in held.itertuples():
        assert questions.loc[(row.task, row.document), "side"] == "holdout"


def test_less_is_better_and_texts_stay_as_they_are(small: Small, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("past drug: drugged\ncapital Turkey: Ankara\n" * 250)
    with (tmp_path / "notes.txt").open("a", encoding="utf-8", newline="") as file:
        file.write(HOSTILE * 12)
    long = json.dumps({"prompt": HOSTILE * 100})
    assert len(long) > 4001
    (tmp_path / "prompts.jsonl").write_text("\n".join([long, '{"prompt": "a"}', '{"prompt": ""}']))
    (tmp_path / "mine.py").write_text(
        "def one(m, t, ds):\n    return [len(d['prompt']) for d in ds]"
    )
    config = small(PLAIN + "normalise: raw\nallow_code: true\n", trials=7)
    tasks = (
        "tasks:\n  notes: {scorer: bits_per_byte, file: notes.txt}\n"
        "  mine: {scorer: 'mine:one', documents: prompts.jsonl}\n"
    )
    config.write_text(config.read_text().replace("tasks:\n", tasks))
    report = read_run(search(config).folder)
    questions = read_questions(report.folder)
    texts = questions.loc["notes"].sort_index()["question"]
    assert "".join(texts) == (tmp_path / "notes.txt").read_bytes().decode()
    assert HOSTILE in "".join(texts)
    assert questions.loc[("mine", 0), "question"] == long[:4000] + "…"
    assert questions.loc[("mine", 1), "question"] == '{"prompt": "a"}'
    for task in ("notes", "mine"):
        assert set(questions.loc[task, "expected"]) == set(questions.loc[task, "choices"]) == {None}

    past, base = number(report, "past"), number(report, "base")
    found = flips(report, past, base).query("task == 'notes'")
    assert set(found.metric) == {METRIC}
    for row in found.itertuples():
        assert row.change == ("gained" if row.second < row.first else "lost")
    for _, own in found.groupby("change"):
        sizes = (own["first"] - own["second"]).abs().tolist()
        assert sizes == sorted(sizes, reverse=True)
    assert len(found) == len(texts[questions.loc["notes", "side"] == "search"])
    assert set(found.first_answer) == {None}


def test_trials_of_two_runs(small: Small, tmp_path: Path) -> None:
    first = read_run(search(small(PLAIN, trials=7, name="first")).folder)
    # The second takes over scores and answers.
    config = small(PLAIN + "start_from: first\n", trials=7, name="second")
    second = read_run(search(config).folder)
    dial = number(second, "dial")
    for side in ("search", "holdout"):
        ours, theirs = (
            read_answers(RunFolder(run.folder).answers(side, number(run, "dial")))
            for run in (first, second)
        )
        assert ours == theirs
        assert set(ours) == {"capital", "past"}
    assert sum(second.by_number[dial].documents.values()) == 0
    past = number(first, "past")
    across = flips(first.folder, past, dial, other_folder=second.folder)
    assert not across.empty
    pd.testing.assert_frame_equal(across, flips(first.folder, past, number(first, "dial")))

    file = RunFolder(second.folder).questions
    kept = pd.read_parquet(file)
    kept.loc[kept["task"] == "past", "question"] = "another"
    kept.to_parquet(file, index=False)
    with pytest.raises(UserError, match=r"of task 'past' has the question 'past .*'another'"):
        flips(first.folder, past, dial, other_folder=second.folder)
    file.unlink()
    with pytest.raises(UserError, match=r"second/documents.parquet: .* cannot be read"):
        flips(first.folder, past, dial, other_folder=second.folder)
    alone = flips(second.folder, number(second, "past"), dial)
    assert not alone.empty
    assert set(alone.question) == {None}


def test_trials_without_such_scores_are_refused(small: Small, tmp_path: Path) -> None:
    text = PLAIN + "objective: smooth\n"
    config = small(text, trials=24, name="smooth")
    content = config.read_text()
    line = next(line for line in content.splitlines() if line.startswith("  capital: {f"))
    config.write_text(content.replace(line + "\n", ""))
    report = read_run(search(config).folder)
    folder = RunFolder(report.folder)
    # Trials that climb the smooth score of a generation task generate no answer.
    smooth = max(record.number for record in report.records)
    assert folder.documents("search", smooth).exists()
    assert not folder.answers("search", smooth).exists()
    base = number(report, "base")
    assert folder.answers("search", base).exists()
    with pytest.raises(UserError, match="share no search document that both were scored on"):
        flips(report.folder, base, smooth)
    with pytest.raises(UserError, match=r"trial 24 is unknown; expected one of 0 to 23"):
        flips(report.folder, base, 24)
    without = next(n for n in report.by_number if not folder.documents("holdout", n).exists())
    with pytest.raises(
        UserError, match=rf"trial {without} \(complete\) has no scores per document"
    ):
        flips(report.folder, base, without, side="holdout")


def test_leaders_and_copies_and_forks_keep_their_answers(small: Small) -> None:
    config = small(PLAIN + "objective: both\n", trials=14)
    report = read_run(search(load_config(config)).folder)
    folder = RunFolder(report.folder)
    leaders = [r for r in report.ranked if r.baseline is None and report.points(r) is not None]
    assert leaders
    later = [r for r in report.records if report.points(r) is not None]
    for record in later:
        assert set(read_answers(folder.answers("search", record.number))) == {"capital", "past"}
    smooth = [r for r in report.records if report.points(r) is None]
    assert smooth
    for record in smooth:  # multiple choice is answered in the same passes
        assert set(read_answers(folder.answers("search", record.number))) == {"capital"}

    changed = small(PLAIN + "objective: both\nseed: 3\n", trials=14)
    forked = RunFolder(search(changed, fork=True).folder)
    assert forked.path != folder.path
    assert read_questions(forked.path).equals(read_questions(folder.path))
    shutil.rmtree(folder.path)
    carried = read_run(forked.path).records[: len(report.records)]
    for record, before in zip(carried, report.records, strict=True):
        assert record.fingerprint == before.fingerprint
        assert forked.answers("search", record.number).exists()

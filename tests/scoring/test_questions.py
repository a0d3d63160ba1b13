"""What documents ask and what a model answered, against the tasks' files and lm-eval's metrics."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import UserError
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.harness import Harness
from evomerge.scoring.questions import ANSWER_LENGTH, CUT, Question, cut
from evomerge.scoring.scorecard import Scorecard, joined, read_answers, write_answers
from evomerge.scoring.scorer import KINDS, Kind, score_blocks
from evomerge.scoring.tasks import TaskRequest

COUNT = 20
HOSTILE = "<script>alert('&amp;')</script> | \x00 \u202e ünïcödé\n\n"


def rows(folder: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]


def harness_of(folder: Path, tokenizer: Any, *names: str) -> Harness:
    requests = [TaskRequest(name=name, folder=folder) for name in names]
    return Harness(requests, tokenizer, budget=BatchBudget(256))


def card_of(
    harness: Harness, model: Any, kinds: frozenset[Kind] = KINDS, count: int = COUNT
) -> Scorecard:
    halves = [range(count // 2), range(count // 2, count)]
    blocks = [dict.fromkeys(harness.tasks, half) for half in halves]
    return score_blocks(harness, model, blocks, kinds=kinds)


def test_questions_are_those_of_the_tasks_without_examples(folder: Path, tokenizer: Any) -> None:
    harness = harness_of(folder, tokenizer, "choice", "letter", "cloze", "text", "answer")
    first, later = rows(folder, "choice")[0], rows(folder, "choice")[7]
    assert harness.questions("choice", [7, 0]) == [
        Question(text=row["question"], choices=tuple(row["choices"]), expected=str(row["answer"]))
        for row in (later, first)
    ]
    letters = ("0", "1", "2", "3")
    assert harness.questions("letter", [7]) == [
        Question(text=later["question"], choices=letters, expected=str(later["gold"]))
    ]
    plain = Question(text=later["question"], expected=later["answer"])
    assert harness.questions("cloze", [7]) == harness.questions("answer", [7]) == [plain]
    text = rows(folder, "text")[3]["text"]
    assert harness.questions("text", [3]) == [Question(text=text)]


def test_answers_are_right_where_the_metric_says_so(
    folder: Path, tokenizer: Any, trained: Any
) -> None:
    harness = harness_of(folder, tokenizer, "choice", "letter", "answer", "cloze", "text")
    # No fewer documents than `text` has.
    card = card_of(harness, trained, count=14)
    assert set(card.answered) == {"choice", "letter", "answer"}  # the others answer nothing
    for task, metric in (("choice", "acc"), ("letter", "acc"), ("answer", "exact_match")):
        questions = harness.questions(task, range(14))
        right = [card.answered[task][n] == questions[n].expected for n in range(14)]
        assert [float(r) for r in right] == list(card.per_document[task].values[f"{metric},none"])
        assert set(right) == {True, False}
    for number, answer in card.answered["choice"].items():
        assert answer in harness.questions("choice", [number])[0].choices


def test_a_choice_is_that_of_acc_also_beside_other_metrics(
    folder: Path, tokenizer: Any, trained: Any, tmp_path: Path, add_task: Callable[..., Path]
) -> None:
    names = ("acc", "acc_norm", "acc_mutual_info")
    metrics = [{"metric": n, "aggregation": "mean", "higher_is_better": True} for n in names]
    asked = rows(folder, "choice")
    settings = {
        "doc_to_text": "{{question}}",
        "target_delimiter": "",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": metrics,
    }
    add_task(tmp_path / "own", "mutual", asked, **settings)
    harness = harness_of(tmp_path / "own", tokenizer, "mutual")
    card = card_of(harness, trained, count=len(asked))
    values = card.per_document["mutual"].values
    right = [float(card.answered["mutual"][n] == row["answer"]) for n, row in enumerate(asked)]
    assert right == list(values["acc,none"])
    assert right != list(values["acc_norm,none"])
    assert right != list(values["acc_mutual_info,none"])


def test_no_answer_is_generated_for_the_smooth_score_alone(
    folder: Path, tokenizer: Any, trained: Any
) -> None:
    harness = harness_of(folder, tokenizer, "choice", "answer")
    smooth = card_of(harness, trained, frozenset({"smooth"}))
    assert set(smooth.answered) == {"choice"}  # the same passes
    metric = card_of(harness, trained, frozenset({"metric"}))
    both = joined(smooth, metric)
    assert both.answered == card_of(harness, trained).answered
    assert set(both.answered["answer"]) == set(range(COUNT))


def test_references_choices_and_hostile_texts(
    tokenizer: Any, trained: Any, tmp_path: Path, add_task: Callable[..., Path]
) -> None:
    exact = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    accuracy = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    generation: dict[str, Any] = {
        "doc_to_text": "{{question}}",
        "target_delimiter": "",
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 3},
        "metric_list": exact,
    }
    own = tmp_path / "own"
    several = [
        {"question": HOSTILE, "answers": ["one", "two"]},
        {"question": "?", "answers": ["x"]},
    ]
    add_task(own, "several", several, **generation, doc_to_target="answers")
    written = [{"question": "a or b?", "gold": 1}, {"question": "b or a?", "gold": 0}]
    add_task(own, "written", written, **generation, doc_to_target="gold", doc_to_choice=["a", "b"])
    ends = [
        {"begin": ["the cup", "the box"], "end": " is full", "gold": 1},
        {"begin": ["the dog", "the cat"], "end": " is old", "gold": 0},
    ]
    add_task(
        own,
        "ends",
        ends,
        output_type="multiple_choice",
        doc_to_text="gold",
        doc_to_choice="begin",
        doc_to_target="end",
        metric_list=accuracy,
        target_delimiter="",
    )
    harness = harness_of(own, tokenizer, "several", "written", "ends")
    assert harness.questions("several", [0, 1]) == [
        Question(text=HOSTILE, expected="one | two"),
        Question(text="?", expected="x"),
    ]
    assert harness.questions("written", [0]) == [
        Question(text="a or b?", choices=("a", "b"), expected="b")
    ]
    assert harness.questions("ends", [0]) == [
        Question(text=" is full", choices=("the cup", "the box"), expected="the box")
    ]
    card = card_of(harness, trained, count=2)
    right = [card.answered["ends"][n] == row["begin"][row["gold"]] for n, row in enumerate(ends)]
    assert [float(r) for r in right] == list(card.per_document["ends"].values["acc,none"])


def test_long_texts_are_cut_and_mark_it() -> None:
    assert cut("x" * ANSWER_LENGTH, ANSWER_LENGTH) == "x" * ANSWER_LENGTH
    assert cut("x" * 2001, ANSWER_LENGTH) == "x" * 2000 + CUT
    assert cut(HOSTILE, 100) == HOSTILE
    assert cut("half \ud83d of a pair", 100) == "half \\ud83d of a pair"


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "00001.answers.json.gz"
    answered = {"a/b \U0001f642": {3: HOSTILE, 11: ""}, "other": {0: "x"}}
    write_answers(answered, path)
    assert read_answers(path) == answered
    nothing = tmp_path / "00002.answers.json.gz"
    write_answers({"task": {}}, nothing)
    assert not nothing.exists()
    assert read_answers(nothing) == {}
    path.write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"00001.answers.json.gz: answers cannot be read"):
        read_answers(path)

"""How real answers ended, what lm-eval's own filters found in them, and what is said of it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.scoring.answers import (
    AnswerHealth,
    answers_from_json,
    answers_to_json,
    ends_in_a_loop,
    examine,
    warnings,
)
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.harness import Harness
from evomerge.scoring.language_model import LanguageModel
from evomerge.scoring.scorer import score_blocks
from evomerge.scoring.tasks import TaskRequest

QUESTIONS = [f"{a}+{b}=" for a in range(0, 20, 3) for b in (1, 4)]
QUESTIONS += ["rev alpha:", "rev theta:", "rev delta:", "1+1+1+"]
FIRST = {"function": "take_first"}


def generate(model: Any, tokenizer: Any, **settings: Any) -> list[Any]:
    language_model = LanguageModel(model, tokenizer, budget=BatchBudget(256))
    return language_model.generate([(question, settings) for question in QUESTIONS])


@pytest.fixture
def endless(model: Any) -> Any:
    """The model, having unlearnt how to end an answer."""
    with torch.no_grad():
        model.model.embed_tokens.weight[2] = 0
    return model


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("until", [["~"], ["1", "st"], ["\n", "ph"]])
def test_cut_off_is_what_ended_by_its_length(
    limit: int, until: list[str], trained: Any, tokenizer: Any
) -> None:
    answers = generate(trained, tokenizer, until=until, do_sample=False, max_gen_toks=limit)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        prompt = tokenizer(question, return_tensors="pt")
        whole = trained.generate(**prompt, do_sample=False, max_new_tokens=limit)
        text = tokenizer.decode(whole[0, prompt["input_ids"].shape[1] :])
        assert answer.cut_off is not any(stop in text for stop in (*until, "</s>"))
        assert answer.limit == limit
    # Both happen among these settings, so that the equalities above say something.
    health = examine(answers, [])
    if limit == 1 or limit == 12:
        assert (health.cut_off > 0.5) is (limit == 1)


def test_sampled_answers_are_counted_by_their_tokens(trained: Any, tokenizer: Any) -> None:
    settings = {"until": ["~"], "do_sample": True, "temperature": 0.7, "max_gen_toks": 2}
    answers = generate(trained, tokenizer, **settings)
    assert {len(answer.text) for answer in answers} >= {1, 2}
    for answer in answers:
        assert answer.cut_off is (len(answer.text) == 2)  # one token per character


def test_an_answer_that_is_stopped_at_once_is_empty(trained: Any, tokenizer: Any) -> None:
    settings = {"do_sample": False, "max_gen_toks": 12}
    answers = generate(trained, tokenizer, until=list("0123456789"), **settings)
    expected = sum(answer.text.strip() == "" for answer in answers) / len(answers)
    assert examine(answers, []).empty == expected
    assert expected >= 14 / 18
    assert examine(generate(trained, tokenizer, until=["~"], **settings), []).empty <= 1 / 18


def test_a_model_that_cannot_end_is_cut_off_and_repeats_itself(
    endless: Any, trained: Any, tokenizer: Any
) -> None:
    settings = {"until": ["~"], "do_sample": False, "max_gen_toks": 60}
    health = examine(generate(endless, tokenizer, **settings), [])
    assert health.cut_off == 1
    assert 0.3 < health.repeated < 1
    sound = examine(generate(trained, tokenizer, **settings), [])
    assert sound.cut_off == sound.repeated == 0
    assert len(warnings({"sums": health}, {"sums": sound})) == 2
    assert warnings({"sums": sound}, {"sums": health}) == []


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("", False),
        ("ha ha ha", False),
        ("1 1 1 1", False),
        ("a" * 19, False),
        ("a" * 20, True),
        ("The answer is 5. " * 3, True),
        ("The answer is 5. " * 2, False),
        ("I think so." + " The answer is 5." * 3 + " The ans", True),
        ("So many words before it, which are more than half of all. " + "no " * 12, False),
        ("Some words before it. " + "no " * 12, True),
        ("no " * 12 + "but then it ended", False),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12", False),
        ("5." + "\n" * 40, True),
    ],
)
def test_what_counts_as_a_loop(text: str, loops: bool) -> None:
    assert ends_in_a_loop(text) is loops


@given(
    head=st.text("ab ", max_size=30),
    unit=st.text("ab c", min_size=1, max_size=14),
    times=st.integers(0, 30),
    more=st.integers(0, 13),
    end=st.sampled_from(["", "\n ", "c"]),
)
def test_loops_are_those_of_the_definition(
    head: str, unit: str, times: int, more: int, end: str
) -> None:
    text = head + unit * times + unit[:more] + end
    length = len(text)
    expected = False
    for period in range(1, length // 3 + 1):
        run = max(20, 3 * period, -(-length // 2))
        if run <= length:
            places = range(length - run + period, length)
            expected |= all(text[place] == text[place - period] for place in places)
    assert ends_in_a_loop(text) is expected


def harness_of(folder: Path, tokenizer: Any, *names: str, **settings: Any) -> Harness:
    requests = [TaskRequest(name=name, folder=folder, **settings) for name in names]
    return Harness(requests, tokenizer, budget=BatchBudget(256))


def test_tasks_that_generate_have_figures_and_others_none(
    folder: Path, tokenizer: Any, trained: Any
) -> None:
    harness = harness_of(folder, tokenizer, "choice", "cloze", "text", "answer", "counted")
    documents = {name: range(8) for name in harness.tasks}
    blocks = [{name: numbers[::2] for name, numbers in documents.items()}]
    blocks += [{name: numbers[1::2] for name, numbers in documents.items()}]
    card = score_blocks(harness, trained, [documents])
    assert card.answers.keys() == {"answer", "counted"}
    assert {health.answers for health in card.answers.values()} == {8}
    assert {health.limit for health in card.answers.values()} == {12}
    assert card.answers["answer"].not_found is None
    assert answers_from_json(answers_to_json(card.answers)) == card.answers
    assert score_blocks(harness, trained, blocks).answers == card.answers
    assert score_blocks(harness, trained, blocks[:1]).answers["answer"].answers == 4
    # Nothing generated, nothing recorded.
    assert score_blocks(harness, trained, [documents], kinds={"smooth"}).answers == {}


def test_not_found_is_read_after_the_filter_of_the_objective(
    folder: Path, tokenizer: Any, trained: Any
) -> None:
    harness = harness_of(folder, tokenizer, "counted")
    card = score_blocks(harness, trained, [{"counted": range(37)}])
    texts = [document.requests[0].resps[0] for document in harness._tasks["counted"].documents]
    missing = [re.search("[0-9]", text) is None for text in texts]
    assert 0 < sum(missing) < 37
    assert card.answers["counted"].not_found == sum(missing) / 37
    whole = harness_of(folder, tokenizer, "counted", filter="whole")
    assert (
        score_blocks(whole, trained, [{"counted": range(9)}]).answers["counted"].not_found is None
    )


CHAINS = {
    "of its own": [{"function": "regex", "regex_pattern": "([0-9])", "fallback": "NO"}, FIRST],
    "changed later": [
        {"function": "regex", "regex_pattern": "([0-9])", "fallback": "NO"},
        {"function": "lowercase"},
        FIRST,
    ],
    "changed into a default": [
        {"function": "regex", "regex_pattern": "([0-9])"},
        {"function": "map", "mapping_dict": {str(n): n for n in range(10)}, "default_value": -1},
        FIRST,
    ],
    "of several": [
        {"function": "regex", "regex_pattern": "([0-9])"},
        {"function": "majority_vote"},
        FIRST,
    ],
    "a list": [{"function": "regex", "regex_pattern": "([0-9])"}],
    "of the second": [
        {"function": "regex", "regex_pattern": "(.*)", "fallback": "none at all"},
        {"function": "regex", "regex_pattern": "([0-9])", "fallback": ""},
        FIRST,
    ],
    "of choices": [
        {"function": "multi_choice_regex", "regex_pattern": "([0-9])", "ignore_case": True},
        FIRST,
    ],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_fallbacks_of_real_filters(
    chain: Any, tmp_path: Path, add_task: Callable[..., Path], tokenizer: Any, trained: Any
) -> None:
    rows = [{"question": q, "answer": "1", "choices": ["~", "^"]} for q in QUESTIONS]
    settings = {"until": ["\n"], "do_sample": False, "max_gen_toks": 12}
    folder = add_task(
        tmp_path / "tasks",
        "asked",
        rows,
        output_type="generate_until",
        doc_to_text="{{question}}",
        target_delimiter="",
        doc_to_target="answer",
        generation_kwargs=settings,
        filter_list=[{"name": "digit", "filter": chain}],
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    harness = harness_of(folder, tokenizer, "asked")
    card = score_blocks(harness, trained, [{"asked": range(len(rows))}])
    texts = [answer.text for answer in generate(trained, tokenizer, **settings)]
    missing = [re.search("[0-9]", text) is None for text in texts]
    assert 0 < sum(missing) < len(rows)
    assert card.answers["asked"].not_found == sum(missing) / len(rows)


SOUND = AnswerHealth(answers=50, cut_off=0, empty=0, repeated=0, not_found=None, limit=16)


def test_what_is_high_in_itself_is_said_beside_the_base() -> None:
    health = replace(SOUND, cut_off=0.62)
    (line,) = warnings({"past": health}, {"past": replace(SOUND, cut_off=0.03)})
    assert line.startswith("past: 62 % of answers were cut off at 16 tokens (base: 3 %); raise max")
    (line,) = warnings({"past": replace(health, limit=1)}, None)
    assert line.startswith("past: 62 % of answers were cut off at 1 token; raise max_gen_toks")
    assert len(warnings({"past": health}, {"past": health})) == 1
    lines = warnings({"a": replace(SOUND, empty=0.3, repeated=0.3, not_found=0.5)}, {})
    assert [line.split(" of answers ")[1].split(";")[0] for line in lines] == [
        "are empty",
        "repeat themselves to the end",
        "were not found by the filter",
    ]


@pytest.mark.parametrize(
    ("share", "of_base", "answers", "warns"),
    [
        (0.19, 0.0, 400, True),  # below what is high in itself, but far from the base
        (0.19, 0.0, 16, False),  # within noise
        (0.19, 0.12, 40_000, False),  # no noise, but near the base
        (0.19, 0.9, 400, False),  # the base's answers are in doubt, not these
        (0.0, 0.0, 1, False),
    ],
)
def test_what_is_further_from_the_base_than_noise(
    share: float, of_base: float, answers: int, warns: bool
) -> None:
    health = replace(SOUND, answers=answers, empty=share)
    base = replace(SOUND, answers=answers, empty=of_base)
    assert bool(warnings({"past": health}, {"past": base})) is warns
    assert warnings({"past": health}, {"other": base}) == []

"""A scorer of the user's own that raises, hangs, or returns nonsense."""

from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge import UserError, search
from evomerge.describe import describe_run
from evomerge.report import read_run

Faulty = Callable[..., Path]

NONSENSE = """\
import sys
from math import inf, nan

def fault(number, model, documents):
    count = len(documents)
    if number == 3:
        return [nan] * count
    if number == 4:
        return [1.0] * (count - 1) + [inf]
    if number == 5:
        return "8" * count
    if number == 6:
        return {document: "good" for document in documents}
    if number == 7:
        return [1.0] * (count + 1)
    if number == 9:
        return [10**400] * count
    if number == 10:
        return [1e300] * count
    if number == 11:
        return [None] * count
    if number == 13:
        raise ZeroDivisionError("no tokens")
    if number == 15:
        sys.exit("no tokens left")
"""
REASONS = [
    "returned nan for document",
    "returned inf for document",
    "returned str '88888888'; expected a list of numbers",
    "returned dict {",
    "returned 9 values for 8 documents",
    "returned inf for document",
    "returned 1e+300 for document",
    "returned NoneType None for a document; expected a number",
    "raised ZeroDivisionError: no tokens",
    "raised SystemExit: no tokens left",
]


def test_nonsense_fails_the_candidate_with_its_reason(faulty: Faulty) -> None:
    outcome = search(faulty(NONSENSE, trials=20))
    report = read_run(outcome.folder)
    failures = list(dict.fromkeys(r.failure for r in report.records if r.failure))
    assert len(failures) == len(REASONS)
    for failure, reason in zip(failures, REASONS, strict=True):
        assert failure.startswith("task 'mine': its function "), failure
        assert reason in failure
    assert report.counts()["complete"] >= 6
    assert outcome.verdict is not None
    assert f"{report.counts()['failed']} failed" in describe_run(outcome.folder)


def test_a_scorer_that_always_fails_ends_the_search_with_the_reason(faulty: Faulty) -> None:
    code = "def fault(number, model, documents):\n    raise KeyError('answer')\n"
    with pytest.raises(UserError, match=r"10 candidates in a row failed.*KeyError: 'answer'"):
        search(faulty(code, trials=30))


def test_nothing_at_all_is_no_list_of_numbers(faulty: Faulty) -> None:
    code = "def score(model, tokenizer, documents):\n    return None\n"
    config = faulty(trials=30)
    (config.parent / "faulty.py").write_text(code)
    with pytest.raises(UserError, match="returned NoneType None; expected a list of numbers"):
        search(config)


HANGS = """\
import time

def fault(number, model, documents):
    if number == 4:
        while True:
            time.sleep(60)
    if number == 6:
        try:
            time.sleep(60)
        except BaseException:
            time.sleep(60)
    seen = HERE / "seen"
    if number > 10 and not seen.exists():
        seen.write_text(str(documents[0]))
    if seen.exists() and str(documents[0]) != seen.read_text() and number > 10:
        time.sleep(60)  # a finalist, on the holdout
"""


def test_a_scorer_that_hangs_is_interrupted(faulty: Faulty) -> None:
    outcome = search(faulty(HANGS, "trial_minutes: 0.02\n", trials=14))
    report = read_run(outcome.folder)
    lost = "took longer than 0.02 minutes (trial_minutes)"
    assert {record.failure for record in report.records if record.failure} == {lost}
    failed = report.counts()["failed"]
    assert failed + report.counts()["complete"] == 14
    assert outcome.verdict is not None
    assert (outcome.folder / "log.txt").read_text().count(lost) > failed, "also on the holdout"


def test_scores_that_change_between_calls_are_those_of_the_first_call(faulty: Faulty) -> None:
    code = """\
calls = []

def fault(number, model, documents):
    calls.append(number)
    return [value + len(calls) for value in sound(model, documents)]
"""
    outcome = search(faulty(code, trials=12))
    report = read_run(outcome.folder)
    assert outcome.verdict is not None
    assert report.counts()["complete"] == 12
    again = search(faulty(code, trials=12))
    assert {r.number: r.value for r in read_run(again.folder).records} == {
        r.number: r.value for r in report.records
    }

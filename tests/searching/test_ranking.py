"""Who goes to the holdout: the best, and those that may be the best as far as documents tell."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState, create_trial

from evomerge.scoring.scorecard import DocumentScores, Metric, write_documents
from evomerge.searching.objective import Goal, Objective, Target
from evomerge.searching.ranking import choose_finalists
from evomerge.searching.record import BASELINE, FINGERPRINT, RESULT, TrialRecord, read_trial
from evomerge.searching.run_folder import RunFolder

NAME = "acc,none"
GOAL = Goal(kind="metric", points=Objective(targets={"task": Target(metric=NAME)}))
COUNT = 200


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "search").mkdir()
    return RunFolder(tmp_path)


def record(
    folder: RunFolder, number: int, right: np.ndarray, baseline: str | None = None
) -> TrialRecord:
    """A trial with these right (1) and wrong (0) answers."""
    metric = Metric(
        task="task",
        name=NAME,
        value=float(right.mean()),
        standard_error=None,
        documents=len(right),
        higher_is_better=True,
    )
    scores = DocumentScores(documents=tuple(range(len(right))), values={NAME: tuple(right)})
    write_documents({"task": scores}, folder.documents("search", number))
    attributes = {
        RESULT: {"metrics": [asdict(metric)], "share": 1.0},
        FINGERPRINT: str(number),
        BASELINE: baseline,
    }
    trial = create_trial(state=TrialState.COMPLETE, value=metric.value, user_attrs=attributes)
    return replace(read_trial(trial), number=number)


def answers(wrong: range) -> np.ndarray:
    found = np.ones(COUNT)
    found[wrong] = 0
    return found


def chosen(folder: RunFolder, *trials: TrialRecord, count: int = 3) -> list[int]:
    return [found.number for found in choose_finalists(trials, GOAL, folder, count)]


def test_those_within_noise_of_the_best_are_finalists(folder: RunFolder) -> None:
    best = record(folder, 1, answers(range(40)))
    near = record(folder, 2, answers(range(20, 64)))  # 4 fewer, of 44 that differ
    far = record(folder, 3, answers(range(70)))  # 30 fewer, of 30 that differ
    assert chosen(folder, best, near, far) == [1, 2]
    assert chosen(folder, far, near, best, count=1) == [1]


def test_one_of_equal_scores_is_enough(folder: RunFolder) -> None:
    trials = [record(folder, n, answers(range(40))) for n in (1, 2)]
    other = record(folder, 3, answers(range(1, 42)))
    assert chosen(folder, *trials, other) == [1, 3]


def test_a_baseline_takes_no_place_and_may_be_the_one_to_reach(folder: RunFolder) -> None:
    plain = record(folder, 0, answers(range(10)), baseline="linear")
    first = record(folder, 1, answers(range(60)))
    second = record(folder, 2, answers(range(1, 62)))
    # Both were shown to be worse than the baseline: the best one goes all the same.
    assert chosen(folder, plain, first, second) == [1]
    assert chosen(folder, plain) == []
    assert chosen(folder) == []

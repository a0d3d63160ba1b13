"""The documents of a run, one by one: what they ask, and where two trials differ.

Read from run folders alone, without models or tasks.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd

from evomerge.errors import UserError
from evomerge.report import RunReport, read_run, readable
from evomerge.scoring.scorecard import Answered, DocumentArrays, read_answers, read_arrays
from evomerge.searching.kept_questions import read_kept
from evomerge.searching.run_folder import RunFolder, Side

_DTYPES: dict[str, Any] = {
    "task": object,
    "document": "int64",
    "metric": object,
    "first": "float64",
    "second": "float64",
    "change": object,
    "question": object,
    "choices": object,
    "expected": object,
    "first_answer": object,
    "second_answer": object,
}
"""Columns of `flips`."""
_ASKED = ("question", "choices", "expected")
Run = RunReport | Path | str
"""A run folder, or what read_run made of it; the latter where its study lies elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """What a trial's files say of one side of the split."""

    run: RunReport
    number: int
    scores: Mapping[str, DocumentArrays]
    answers: Answered

    def values(self, task: str, metric: str) -> dict[int, float]:
        """Document -> its score; without those that do not count for the metric."""
        own = self.scores.get(task)
        if own is None or metric not in own.values:
            return {}
        found = zip(own.documents.tolist(), own.values[metric].tolist(), strict=True)
        return {number: value for number, value in found if not isnan(value)}


def read_questions(folder: Path | str) -> pd.DataFrame:
    """What the documents of a run ask: one row for each, with index (task, document), side (search
    or holdout), question, choices (list of texts, or None), expected (text, or None).

    Raises UserError where the run folder does not hold it.
    """
    return read_kept(RunFolder(Path(folder))).set_index(["task", "document"])


def flips(
    folder: Run,
    first: int,
    second: int,
    side: Side = "search",
    other_folder: Run | None = None,
    *,
    tasks: Collection[str] | None = None,
) -> pd.DataFrame:
    """The documents on which two trials differ, by each task's own metric.

    second: of `other_folder`, where that is given: a run that shares tasks and documents. tasks: of
    these alone; None: of all. One row per document that both were scored on, and scored
    differently: task, document, metric, first and second (the scores, in the metric's unit), change
    ("gained" where the second is better, by the metric's direction; "lost" where it is worse),
    question, choices, expected, first_answer and second_answer (None where not recorded). Task
    after task in the run's order, first what was gained, largest differences first.

    Raises UserError for a trial without scores per document, for two that share none, and for runs
    whose documents differ.
    """
    run = _report(folder)
    other = run if other_folder is None else _report(other_folder)
    with readable(run.folder):
        return _flips((run, first), (other, second), side, tasks)


def _flips(
    ours: tuple[RunReport, int],
    theirs: tuple[RunReport, int],
    side: Side,
    wanted: Collection[str] | None,
) -> pd.DataFrame:
    (run, first), (other, second) = ours, theirs
    one, two = _trial(run, first, side), _trial(other, second, side)
    scored = {}
    for task, target in run.goal.points.targets.items():
        if wanted is not None and task not in wanted:
            continue
        own, others = (trial.values(task, target.metric) for trial in (one, two))
        if both := {n: (own[n], others[n]) for n in own if n in others}:
            scored[task] = both
    if not scored:
        raise UserError(
            f"trials {first} and {second} share no {side} document that both were scored on by its "
            "task's own metric; expected two that were scored so, such as leaders or finalists"
        )
    asked = _asked(run, other, scored)
    rows = [
        row
        for task, values in scored.items()
        for row in _rows(task, run.goal.points.targets[task].metric, values, (one, two), asked)
    ]
    columns = {
        name: pd.Series([row[name] for row in rows], dtype=dtype) for name, dtype in _DTYPES.items()
    }
    return pd.DataFrame(columns)


def _report(run: Run) -> RunReport:
    return run if isinstance(run, RunReport) else read_run(run)


def _trial(run: RunReport, number: int, side: Side) -> _Trial:
    """UserError where it is unknown or has no scores there."""
    folder = RunFolder(run.folder)
    if number not in run.by_number:
        raise UserError(
            f"{run.folder}: trial {number} is unknown; expected one of 0 to {len(run.records) - 1}"
        )
    path = folder.documents(side, number)
    if not path.exists():
        record = run.by_number[number]
        raise UserError(
            f"{run.folder}: trial {number} ({record.state}) has no scores per document of the "
            f"{side} documents; expected a trial that was scored on them"
        )
    return _Trial(
        run=run,
        number=number,
        scores=read_arrays(path),
        answers=read_answers(folder.answers(side, number)),
    )


def _asked(
    run: RunReport, other: RunReport, scored: Mapping[str, Mapping[int, Any]]
) -> dict[tuple[str, int], dict[str, Any]]:
    """(task, document) -> question, choices, expected; nothing for a run that kept none.

    Of two runs, UserError unless both kept them and they are equal.
    """
    places = [(task, number) for task, own in scored.items() for number in own]
    if other.folder == run.folder:
        known = RunFolder(run.folder).questions.exists()
        return _by_place(run) if known else {}
    ours, theirs = _by_place(run), _by_place(other)
    for task, number in places:
        one, two = (asked.get((task, number), {}) for asked in (ours, theirs))
        for name in _ASKED:
            if one.get(name) != two.get(name):
                raise UserError(
                    f"document {number} of task {task!r} has the {name} {one.get(name)!r} in "
                    f"{run.folder} and {two.get(name)!r} in {other.folder}; expected two runs on "
                    "the same documents"
                )
    return ours


def _by_place(run: RunReport) -> dict[tuple[str, int], dict[str, Any]]:
    frame = read_questions(run.folder)
    texts = zip(*(frame[name] for name in _ASKED), strict=True)
    return {
        place: dict(zip(_ASKED, own, strict=True))
        for place, own in zip(frame.index, texts, strict=True)
    }


def _rows(
    task: str,
    metric: str,
    values: Mapping[int, tuple[float, float]],
    trials: tuple[_Trial, _Trial],
    asked: Mapping[tuple[str, int], Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Of one task."""
    sign = 1 if _higher_is_better(trials[0].run, task, metric) else -1
    better = {n: sign * (second - first) for n, (first, second) in values.items()}
    differing = sorted(
        (n for n in values if better[n]), key=lambda n: (better[n] < 0, -abs(better[n]), n)
    )
    first_answers, second_answers = (trial.answers.get(task, {}) for trial in trials)
    return [
        {
            "task": task,
            "document": number,
            "metric": metric,
            "first": values[number][0],
            "second": values[number][1],
            "change": "gained" if better[number] > 0 else "lost",
            **dict.fromkeys(_ASKED),
            **asked.get((task, number), {}),
            "first_answer": first_answers.get(number),
            "second_answer": second_answers.get(number),
        }
        for number in differing
    ]


def _higher_is_better(run: RunReport, task: str, metric: str) -> bool:
    """As the run's scores have it; every trial's say the same."""
    held = (metric for own in run.holdout.values() for metric in own.values())
    known = (metric for record in run.records for metric in record.metrics)
    for found in (*known, *held):
        if (found.task, found.name) == (task, metric):
            return found.higher_is_better
    raise UserError(f"{run.folder}: no trial has a metric {metric} of task {task!r}")

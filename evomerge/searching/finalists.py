"""The end of a run: finalists and baselines on the holdout documents, and the verdict."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import optuna

from evomerge.scoring.answers import Answers, answers_from_json, answers_to_json, warnings
from evomerge.scoring.scorecard import (
    Scorecard,
    count_documents,
    from_json,
    joined,
    read_answers,
    to_json,
)
from evomerge.searching.attempt import Evaluate
from evomerge.searching.failure import reason_of
from evomerge.searching.intervals import Gain, Scored, gains_by_task, gains_over_best
from evomerge.searching.objective import Goal, Objective
from evomerge.searching.patience import patiently
from evomerge.searching.ranking import choose_finalists, rank
from evomerge.searching.record import FILES, POINTS, TrialRecord, read_trials
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.sent_files import packed
from evomerge.searching.time_limit import time_limit
from evomerge.searching.trial_files import write_trial
from evomerge.searching.verdict import Verdict, verdict_from_json

log = logging.getLogger(__name__)

HOLDOUT = "holdout"
"""Prefix of study attributes: `holdout:12` has the metrics of trial 12."""
VERDICT = "verdict"
_PAUSE = 0.5  # seconds before another look at what other workers score


def score_finalists(
    study: optuna.Study,
    folder: RunFolder,
    goal: Goal,
    count: int,
    evaluate: Evaluate,
    *,
    stop_asked: Callable[[], bool],
    limit: float | None = None,
    claim: Callable[[str], bool] = lambda name: True,
) -> None:
    """Scores the leaders' metrics, where these are not known, then finalists and baselines on the
    holdout documents; all as far as missing, until a stop is asked for.

    limit: seconds that each may take; None: any number. claim: whether what will be kept under this
    name is for this worker to score, and not for another one that lives; all return when all is
    scored.
    """

    def points(record: TrialRecord) -> None:
        log.info("metrics of a leader: %s", record.name)
        score_points(study, folder, record, evaluate, limit)

    def holdout(record: TrialRecord) -> None:
        log.info("holdout: %s", record.name)
        score_holdout(study, folder, record, evaluate, goal, limit)

    leaders = to_judge(study, goal)
    _share(lambda: to_judge(study, goal), POINTS, points, claim, stop_asked)
    if folder.fetch is not None:
        for record in leaders:  # what is here may be what it was before
            folder.fetch("search", record.number)
    _share(lambda: to_score(study, folder, count, goal), HOLDOUT, holdout, claim, stop_asked)


def _share(
    left: Callable[[], list[TrialRecord]],
    prefix: str,
    score: Callable[[TrialRecord], None],
    claim: Callable[[str], bool],
    stop_asked: Callable[[], bool],
) -> None:
    """Scores, with other workers, what is left, until nothing is."""
    while (records := left()) and not stop_asked():
        mine = next((r for r in records if claim(f"{prefix}:{r.number}")), None)
        if mine is None:
            time.sleep(_PAUSE)
        else:
            score(mine)


def to_judge(study: optuna.Study, goal: Goal) -> list[TrialRecord]:
    """For the goal `both`: leaders whose metrics on the search documents are not known yet."""
    if goal.kind != "both":
        return []
    tried = {key for key in study.user_attrs if key.startswith(f"{POINTS}:")}
    smooth = replace(goal, kind="smooth")
    return [
        record
        for record in rank(read_trials(study), smooth)[: goal.leaders]
        if goal.points.value_of(record.metrics) is None and f"{POINTS}:{record.number}" not in tried
    ]


def score_points(
    study: optuna.Study,
    folder: RunFolder,
    record: TrialRecord,
    evaluate: Evaluate,
    limit: float | None = None,
) -> None:
    """Scores a finished trial's metrics on the search documents, beside what is known of it."""
    name = f"{POINTS}:{record.number}"
    try:
        with time_limit(limit):
            scorecard, seconds = evaluate(record.recipe, "search", kinds=frozenset({"metric"}))
    except Exception as error:  # noqa: BLE001 - recorded; it does not end the night
        _fail(study, name, record, error)
        return
    number = record.number
    before = Scorecard(
        metrics=(),
        per_document=folder.scores("search", number),
        answered=read_answers(folder.answers("search", number)),
    )
    whole = joined(before, scorecard)
    patiently("writing scores", lambda: write_trial(folder, "search", number, whole))
    later: dict[str, Any] = {
        "metrics": to_json(scorecard.metrics),
        "answers": answers_to_json(scorecard.answers),
        "documents": count_documents(scorecard, ["metric"]),
        "seconds": dict(seconds),
    }
    if folder.fetch is not None:
        later[FILES] = packed(folder, "search", number)
    study.set_user_attr(name, later)


def to_score(study: optuna.Study, folder: RunFolder, count: int, goal: Goal) -> list[TrialRecord]:
    """The finalists (of several objectives: from the front) and every baseline, given up early or
    not, as far as the holdout has not seen them."""
    records = read_trials(study)
    seen = holdout_metrics(study.user_attrs)
    scored = [r for r in records if r.value is not None or r.estimate is not None]
    baselines = [record for record in scored if record.baseline is not None]
    wanted = {r.number: r for r in (*choose_finalists(records, goal, folder, count), *baselines)}
    return [record for record in wanted.values() if record.number not in seen]


def score_holdout(
    study: optuna.Study,
    folder: RunFolder,
    record: TrialRecord,
    evaluate: Evaluate,
    goal: Goal,
    limit: float | None = None,
) -> None:
    """Scores one trial on the holdout documents and keeps what came out."""
    name = f"{HOLDOUT}:{record.number}"
    try:
        with time_limit(limit):
            scorecard, _ = evaluate(record.recipe, "holdout", kinds=goal.holdout_kinds)
    except Exception as error:  # noqa: BLE001 - recorded; it does not end the night
        _fail(study, name, record, error)
        return
    patiently("writing scores", lambda: write_trial(folder, "holdout", record.number, scorecard))
    found: dict[str, Any] = {
        "metrics": to_json(scorecard.metrics),
        "answers": answers_to_json(scorecard.answers),
    }
    if folder.fetch is not None:
        found[FILES] = packed(folder, "holdout", record.number)
    study.set_user_attr(name, found)


def _fail(study: optuna.Study, name: str, record: TrialRecord, error: Exception) -> None:
    """Keeps, and says, why a trial could not be scored there."""
    reason = reason_of(error, record.name)
    log.warning("%s: %s", record.name, reason)
    study.set_user_attr(name, {"failure": reason})


def holdout_metrics(attributes: Mapping[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """Trial number -> its metrics on the holdout (empty: it failed there), of a study's
    attributes."""
    return {number: value.get("metrics", []) for number, value in _held(attributes).items()}


def holdout_answers(attributes: Mapping[str, Any]) -> dict[int, Answers]:
    """Trial number -> task -> how its answers to the holdout ended, of a study's attributes."""
    return {
        number: answers_from_json(value.get("answers", {}))
        for number, value in _held(attributes).items()
        if value.get("metrics")
    }


def _held(attributes: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    prefix = f"{HOLDOUT}:"
    return {
        int(key.removeprefix(prefix)): value
        for key, value in attributes.items()
        if key.startswith(prefix)
    }


def score_warnings(
    record: TrialRecord, base: TrialRecord | None, held: Mapping[int, Answers]
) -> list[str]:
    """Why the trial's scores are in doubt, in plain words: of its answers to the holdout where it
    has any there, else to the search documents. held: what `holdout_answers` says.
    """
    of_base = None
    if base is not None and base.number != record.number:
        of_base = (held.get(base.number) if held.get(record.number) else None) or base.answers
    return warnings(held.get(record.number) or record.answers, of_base)


def scored_on_holdout(
    study: optuna.Study, folder: RunFolder, objective: Objective
) -> dict[int, Scored]:
    """Trial number -> its scores on the holdout, with those of every document."""
    scored = {}
    for number, rows in holdout_metrics(study.user_attrs).items():
        metrics = objective.found(from_json(rows))
        if metrics is not None:
            scored[number] = Scored(metrics=metrics, documents=folder.scores("holdout", number))
    return scored


def decide(study: optuna.Study, folder: RunFolder, goal: Goal, seed: int) -> Verdict | None:
    """The verdict, recorded in the study; None where nothing could be scored on the holdout.

    Every candidate that the holdout has seen counts as a finalist in the intervals, also those of
    an earlier end of the same run.
    """
    records = {record.number: record for record in read_trials(study)}
    scored = scored_on_holdout(study, folder, goal.points)
    ranked = [record for record in rank(list(records.values()), goal) if record.number in scored]
    rivals = [number for number in scored if records[number].baseline is not None]
    rivals = [number for number in rivals if records[number].feasible] or rivals
    if not ranked or not rivals:
        return None
    winner = ranked[0]
    finalists = list(dict.fromkeys((winner.number, *(n for n in scored if n not in rivals))))

    def over_best(others: list[int]) -> Gain:
        own, beside = ([scored[number] for number in some] for some in (finalists, others))
        return gains_over_best(own, beside, goal.points, seed)[0]

    def best(some: list[int]) -> int:
        return max(some, key=lambda number: goal.points.value(scored[number].metrics))

    # A baseline that was the best on the search documents is compared with sources alone.
    opponent = best(rivals) if winner.baseline is None else winner.number
    singles = [n for n in rivals if records[n].baseline in records[n].recipe.sources]
    source = best(singles) if singles and winner.number not in singles else None
    nothing = Gain(value=0.0, low=0.0, high=0.0, unit=goal.points.unit)
    verdict = Verdict(
        winner=winner.number,
        opponent=opponent,
        gain=nothing if opponent == winner.number else over_best(rivals),
        optimism=_optimism(study, winner, goal),
        optimism_unit=goal.judged.unit,
        score=goal.points.value(scored[winner.number].metrics),
        source=source,
        source_gain=None if source is None else over_best(singles),
        tasks={}
        if opponent == winner.number
        else gains_by_task(scored[winner.number], scored[opponent], goal.points, seed),
        comparisons=(len(finalists), len(rivals)),
    )
    study.set_user_attr(VERDICT, verdict.to_json())
    return verdict


def _optimism(study: optuna.Study, winner: TrialRecord, goal: Goal) -> float:
    """Like with like: what the winner was chosen by, on either side."""
    on_search = goal.judged.value_of(winner.metrics)
    held = from_json(holdout_metrics(study.user_attrs)[winner.number])
    on_holdout = goal.judged.value_of(held)
    assert on_search is not None  # it was ranked by this
    assert on_holdout is not None  # and scored on goal.holdout_kinds
    return on_search - on_holdout


def read_verdict(attributes: Mapping[str, Any]) -> Verdict | None:
    """The verdict that `decide` recorded; None before a run's end."""
    stored = attributes.get(VERDICT)
    return None if stored is None else verdict_from_json(stored)

"""The end of a run: finalists and baselines on the holdout documents, and the verdict."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import optuna

from evomerge.errors import CandidateError
from evomerge.scoring.answers import Answers, answers_from_json, answers_to_json, warnings
from evomerge.scoring.scorecard import from_json, read_documents, to_json, write_documents
from evomerge.searching.loop import Evaluate
from evomerge.searching.objective import Objective
from evomerge.searching.record import TrialRecord, read_trials
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.verdict import Gain, Scored, Verdict, paired_gain

HOLDOUT = "holdout"
"""Prefix of study attributes: `holdout:12` has the metrics of trial 12."""
VERDICT = "verdict"


def rank(records: list[TrialRecord]) -> list[TrialRecord]:
    """Complete trials of distinct weights, best objective on the search documents first."""
    distinct: dict[str | None, TrialRecord] = {}
    for record in records:
        if record.value is not None:
            distinct.setdefault(record.fingerprint, record)
    return sorted(distinct.values(), key=lambda r: -(r.value if r.value is not None else 0.0))


def to_score(study: optuna.Study, count: int) -> list[TrialRecord]:
    """The best `count` trials and every baseline, as far as the holdout has not seen them."""
    records = read_trials(study)
    seen = holdout_metrics(study)
    baselines = [r for r in records if r.baseline is not None and r.value is not None]
    wanted = {r.number: r for r in (*rank(records)[:count], *baselines)}
    return [record for record in wanted.values() if record.number not in seen]


def score_holdout(
    study: optuna.Study, folder: RunFolder, record: TrialRecord, evaluate: Evaluate
) -> None:
    """Scores one trial on the holdout documents and keeps what came out."""
    try:
        scorecard, _ = evaluate(record.recipe, "holdout")
    except CandidateError as error:
        study.set_user_attr(f"{HOLDOUT}:{record.number}", {"failure": str(error)})
        return
    write_documents(scorecard, folder.documents("holdout", record.number))
    found = {
        "metrics": to_json(scorecard.metrics),
        "answers": answers_to_json(scorecard.answers),
    }
    study.set_user_attr(f"{HOLDOUT}:{record.number}", found)


def holdout_metrics(study: optuna.Study) -> dict[int, list[dict[str, Any]]]:
    """Trial number -> its metrics on the holdout (empty: it failed there)."""
    prefix = f"{HOLDOUT}:"
    return {
        int(key.removeprefix(prefix)): value.get("metrics", [])
        for key, value in study.user_attrs.items()
        if key.startswith(prefix)
    }


def holdout_answers(attributes: Mapping[str, Any]) -> dict[int, Answers]:
    """Trial number -> task -> how its answers to the holdout ended, of a study's attributes."""
    prefix = f"{HOLDOUT}:"
    return {
        int(key.removeprefix(prefix)): answers_from_json(value.get("answers", {}))
        for key, value in attributes.items()
        if key.startswith(prefix) and value.get("metrics")
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
    found = {}
    for number, rows in holdout_metrics(study).items():
        metrics = {(m.task, m.name): m for m in from_json(rows)}
        if metrics:
            found[number] = Scored(
                metrics={t: metrics[t, x.metric] for t, x in objective.targets.items()},
                documents=read_documents(folder.documents("holdout", number)),
            )
    return found


def decide(
    study: optuna.Study, folder: RunFolder, objective: Objective, seed: int
) -> Verdict | None:
    """The verdict, recorded in the study; None where nothing could be scored on the holdout."""
    records = {record.number: record for record in read_trials(study)}
    scored = scored_on_holdout(study, folder, objective)
    ranked = [record for record in rank(list(records.values())) if record.number in scored]
    rivals = [number for number in scored if records[number].baseline is not None]
    if not ranked or not rivals:
        return None
    winner = ranked[0]
    opponent = max(rivals, key=lambda number: objective.value(scored[number].metrics))
    if winner.baseline is not None:
        opponent = winner.number
    ours = scored[winner.number]
    verdict = Verdict(
        winner=winner.number,
        opponent=opponent,
        gain=paired_gain(ours, scored[opponent], objective, seed),
        optimism=(winner.value or 0.0) - objective.value(ours.metrics),
    )
    study.set_user_attr(VERDICT, asdict(verdict))
    return verdict


def read_verdict(attributes: Mapping[str, Any]) -> Verdict | None:
    """The verdict that `decide` recorded; None before a run's end."""
    stored = attributes.get(VERDICT)
    if stored is None:
        return None
    return Verdict(**{**stored, "gain": Gain(**stored["gain"])})

"""What the pages of all runs, and of one, show, as plain values for their templates."""

from typing import Any
from urllib.parse import quote

import pandas as pd

from evomerge.dashboard import galleries
from evomerge.dashboard.asked import STATES, Asked
from evomerge.dashboard.cells import duration
from evomerge.dashboard.runs import Run, Runs
from evomerge.dashboard.snapshot import Snapshot
from evomerge.searching.objective import UNIT_NAMES
from evomerge.searching.record import TrialRecord

PAGE = 50
"""Rows of the leaderboard at a time."""


def runs_table(runs: Runs) -> pd.DataFrame:
    """One row per run, as the first page shows them."""
    return pd.DataFrame([_run_row(run) for run in runs])


def runs_page(runs: Runs) -> dict[str, Any]:
    """All runs."""
    return {"title": "Runs", "rows": [_run_row(run) for run in runs], "watched": []}


def _run_row(run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": run.name,
        "state": "",
        "trials": "",
        "best": "",
        "baseline": "",
        "verdict": "",
        "per hour": None,
        "left": None,
        "read": run.read,
        "problem": run.problem or "",
    }
    snapshot = run.snapshot
    if snapshot is None:
        row["state"] = "unreadable" if run.problem else "being read" if run.read < 1 else "begins"
        return row
    report = snapshot.report
    winner, best = snapshot.winner, snapshot.best_baseline
    return {
        **row,
        "state": report.state(),
        "trials": snapshot.done(),
        "best": value_text(snapshot, winner),
        "baseline": value_text(snapshot, best),
        "verdict": next(iter(verdict_lines(snapshot)), ""),
        "per hour": snapshot.per_hour() if report.running else None,
        "left": snapshot.remaining(),
    }


def value_text(snapshot: Snapshot, record: TrialRecord | None) -> str:
    if record is None or record.value is None:
        return ""
    return f"{snapshot.report.goal.text(record.value, record.metrics)} ({record.name})"


def verdict_lines(snapshot: Snapshot) -> list[str]:
    """The sentences of the verdict, or of the front's."""
    report = snapshot.report
    names = {record.number: record.name for record in report.records}
    lines: list[str] = []
    if report.verdict is not None:
        lines = report.verdict.lines(names)
    if report.front_verdict is not None:
        lines = report.front_verdict.sentences(names)
    return [*lines, *(f"{names[limit.trial]}: {limit.sentence()}" for limit in report.limits)]


def told(run: Run, snapshot: Snapshot) -> dict[str, Any]:
    """What a run has to say in words: on its page, and in its report."""
    report = snapshot.report
    return {
        "facts": facts(run, snapshot),
        "verdict": verdict_lines(snapshot),
        "conclusion": None if report.verdict is None else report.verdict.conclusion,
        "plateau": None if report.plateau is None else report.plateau.sentence(),
    }


def run_page(run: Run, snapshot: Snapshot, asked: Asked) -> dict[str, Any]:
    """One run."""
    report = snapshot.report
    table = asked.filtered(snapshot.frame)
    last = max(1, -(-len(table) // PAGE))
    page = min(asked.page, last)
    shown = table.iloc[(page - 1) * PAGE : page * PAGE]
    failures = [r for r in report.records if r.failure]
    found = galleries.run_figures(snapshot)
    if (winner := snapshot.winner) is not None:
        address = f"/run/{quote(run.name)}/trial/{winner.number}"
        own = galleries.winner_figures(snapshot)
    else:
        address, own = "", []
    return {
        "title": run.name,
        "run": run,
        "watched": [run.name],
        **told(run, snapshot),
        "notes": report.scale_notes,
        "figures": [(f, f"/run/{quote(run.name)}/figures/{f.name}") for f in found],
        "winner": snapshot.winner,
        "winner_figures": [(f, f"{address}/figures/{f.name}") for f in own],
        "importance": f"/run/{quote(run.name)}/figures/importance",
        "asked": asked,
        "states": STATES,
        "methods": sorted({m for own in snapshot.frame["methods"] for m in own.split()}),
        "tasks": list(snapshot.tasks),
        "unit": UNIT_NAMES[report.goal.climbed.unit],
        "rows": shown.to_dict("records"),
        "count": len(table),
        "page": page,
        "last": last,
        "failures": failures[-20:][::-1],
        "failure_count": len(failures),
        "counts": [(s, report.counts()[s]) for s in STATES if s in report.counts()],
        "rivals": _rivals(snapshot),
        "by_task": [] if report.verdict is None else list(report.verdict.tasks.items()),
        "opponent": _opponent(snapshot),
    }


def _opponent(snapshot: Snapshot) -> TrialRecord | None:
    """The baseline that the verdict compares the winner with."""
    verdict = snapshot.report.verdict
    if verdict is None or verdict.opponent == verdict.winner:
        return None
    return snapshot.report.records[verdict.opponent]


def _rivals(snapshot: Snapshot) -> list[tuple[str, str]]:
    """Comparisons that one would want, as (words, query)."""
    winner, opponent = snapshot.winner, _opponent(snapshot)
    if winner is None:
        return []
    found = []
    if opponent is not None:
        trials = f"?trials={opponent.number},{winner.number}&side=holdout"
        found.append((f"{winner.name} beside {opponent.name} on the holdout", trials))
    others = [record for record in snapshot.ranked[:2] if record.number != winner.number]
    if others:
        found.append(
            (
                f"{winner.name} beside {others[0].name}",
                f"?trials={others[0].number},{winner.number}",
            )
        )
    return found


def facts(run: Run, snapshot: Snapshot) -> list[tuple[str, str]]:
    """A few lines about a run, as (name, text)."""
    report, counts = snapshot.report, snapshot.report.counts()
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    pruned = ", ".join(f"{count} by {why}" for why, count in report.pruned().items())
    found = [
        ("state", report.state()),
        ("trials", states + (f" (pruned: {pruned})" if pruned else "")),
        ("best", value_text(snapshot, snapshot.winner)),
        ("best baseline", value_text(snapshot, snapshot.best_baseline)),
        ("objective", f"{report.goal.kind}: {report.goal.reason}"),
    ]
    share = report.share()
    if share is not None:
        found.append(("documents scored per trial", f"{100 * share:.0f} %"))
    if report.running:
        pace, left = snapshot.per_hour(), snapshot.remaining()
        found.append(("pace", "" if pace is None else f"{pace:.0f} trials/h"))
        found.append(("time left", "" if left is None else duration(left)))
    if report.guidance is not None:
        found.append(("guidance", str(report.guidance.get("end", "under way"))))
    found.append(("folder", str(run.folder.path)))
    return [(name, text) for name, text in found if text]

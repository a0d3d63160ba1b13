"""What the page of a trial shows."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import pandas as pd
from starlette.datastructures import QueryParams

from evomerge.dashboard import galleries
from evomerge.dashboard.asked import side_of
from evomerge.dashboard.compare import Chosen, compare
from evomerge.dashboard.depth import depth_of
from evomerge.dashboard.snapshot import Snapshot
from evomerge.documents import flips
from evomerge.searching.objective import amount
from evomerge.searching.record import TrialRecord
from evomerge.searching.run_folder import Side

FLIPPED = 100
"""Documents that are listed at a time."""


def trial_page(chosen: Chosen, other: Chosen | None, query: QueryParams) -> dict[str, Any]:
    """One trial, beside another where one is chosen."""
    snapshot, record = chosen.snapshot, chosen.record
    report = snapshot.report
    side = side_of(query)
    has_recipe = record.recipe_text is not None
    depth = depth_of(record.recipe) if has_recipe else None
    address = f"/run/{quote(chosen.run.name)}/trial/{record.number}"
    found = [] if depth is None else galleries.trial_figures(depth)
    differences, why_not = ({}, "") if other is None else compare(other, chosen, side)
    task = query.get("task") or _most_changed(differences)
    flipped_table = None
    if other is not None and differences and task:
        flipped_table = flipped(other, chosen, side, task)
    beside = beside_of(chosen)
    return {
        "title": f"{record.name} · {chosen.run.name}",
        "run": chosen.run,
        "watched": [],
        "record": record,
        "facts": trial_facts(chosen),
        "warnings": report.warnings(record),
        "figures": [(figure, f"{address}/figures/{figure.name}") for figure in found],
        "yaml": record.recipe.to_yaml() if has_recipe else None,
        "export": f"evomerge export {chosen.run.folder.path} OUT --trial {record.number}",
        "beside": beside,
        "tasks": task_rows(snapshot, beside),
        "held": held_rows(snapshot, beside),
        "other": other,
        "against": query.get("against", ""),
        "others": _suggested(snapshot, record),
        "side": side,
        "task": task,
        "differences": differences,
        "why_not": why_not,
        "flipped": None
        if flipped_table is None
        else flipped_table.head(FLIPPED).to_dict("records"),
        "flipped_count": 0 if flipped_table is None else len(flipped_table),
        "previous": record.number - 1 if record.number else None,
        "next": record.number + 1 if record.number + 1 < snapshot.trials else None,
    }


def _shown(table: pd.DataFrame | None) -> dict[str, Any]:
    if table is None:
        return {"flipped": None, "flipped_count": 0}
    return {"flipped": table.head(FLIPPED).to_dict("records"), "flipped_count": len(table)}


def flipped(first: Chosen, second: Chosen, side: Side, task: str | None) -> pd.DataFrame:
    """The documents on which the second is better or worse than the first; of one task, or all."""
    same = first.run is second.run
    return flips(
        first.snapshot.report,
        first.record.number,
        second.record.number,
        side,
        None if same else second.snapshot.report,
        tasks=None if task is None else [task],
    )


def _most_changed(differences: Mapping[str, Any]) -> str:
    named = {task: d.gained + d.lost for task, d in differences.items() if task}
    return max(named, key=lambda task: named[task], default="")


def trial_facts(chosen: Chosen) -> list[tuple[str, str]]:
    record, snapshot = chosen.record, chosen.snapshot
    goal = snapshot.report.goal
    found = [("state", record.state)]
    winner = snapshot.winner
    if winner is not None and winner.number == record.number:
        place = "best so far" if snapshot.report.verdict is None else "winner"
        found = [("state", f"{record.state}; the {place}")]
    if record.value is not None:
        found.append(("score", goal.text(record.value, record.metrics, digits=2)))
    if record.estimate is not None:
        found.append(("estimate", amount(record.estimate, goal.climbed.unit, digits=2)))
    if record.pruned_because:
        found.append(("ended because", record.pruned_because))
    if record.failure:
        found.append(("failed because", record.failure))
    for task, amount_missed in record.violations.items():
        words = "kept" if amount_missed <= 0 else f"missed by {amount_missed:.4g}"
        found.append((f"limit on {task}", words))
    if record.share is not None:
        found.append(("documents scored", f"{100 * record.share:.0f} %"))
    if record.step is not None:
        found.append(("gradient steps before it", str(record.step)))
    if record.started is not None:
        found.append(("started", record.started.astimezone().strftime("%Y-%m-%d %H:%M:%S")))
    if record.host:
        found.append(("host", record.host))
    if record.seconds:
        phases = ", ".join(f"{phase} {own:.2f} s" for phase, own in record.seconds.items())
        found.append(("seconds", phases))
    found += [("remark", remark) for remark in record.remarks]
    if record.fingerprint:
        found.append(("fingerprint", record.fingerprint))
    return found


def beside_of(chosen: Chosen) -> list[TrialRecord]:
    """The trial, base and sources, and the winner: each once."""
    winner = chosen.snapshot.winner
    found = [chosen.record, *_plain(chosen.snapshot, chosen.record)]
    if winner is not None and winner.number not in {each.number for each in found}:
        found.append(winner)
    return found


def _plain(snapshot: Snapshot, record: TrialRecord) -> list[TrialRecord]:
    """Base and sources, as far as they are scored."""
    names = ("base", *(() if record.recipe_text is None else record.recipe.sources))
    return [
        each
        for each in snapshot.report.records
        if each.baseline in names and each.value is not None and each.number != record.number
    ]


def task_rows(snapshot: Snapshot, beside: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """Per task, the trials' metrics on the search documents, in percent with standard errors."""
    rows = []
    for task, key in snapshot.tasks.items():
        values, errors = (
            snapshot.index.columns.values(key, snapshot.trials, field)
            for field in ("value", "standard_error")
        )
        cells = [(100 * values[r.number], 100 * errors[r.number]) for r in beside]
        rows.append({"task": task, "metric": key[1], "cells": cells})
    return rows


def held_rows(snapshot: Snapshot, beside: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """The same on the holdout; nothing where the trial itself was not scored there."""
    holdout = snapshot.report.holdout
    if beside[0].number not in holdout:
        return []
    rows = []
    for task, key in snapshot.tasks.items():
        cells = []
        for record in beside:
            metric = holdout.get(record.number, {}).get(task)
            error = None if metric is None else metric.standard_error
            cells.append(
                (float("nan"), float("nan"))
                if metric is None
                else (100 * metric.value, float("nan") if error is None else 100 * error)
            )
        rows.append({"task": task, "metric": key[1], "cells": cells})
    return rows


def _suggested(snapshot: Snapshot, record: TrialRecord) -> list[TrialRecord]:
    """Trials that one would compare it with: baselines, and the best."""
    plain = [r for r in snapshot.report.records if r.baseline is not None and r.value is not None]
    found = {r.number: r for r in (*snapshot.ranked[:8], *plain) if r.number != record.number}
    return list(found.values())


def scores_table(chosen: Chosen) -> pd.DataFrame:
    """One row per task, trial and side: what the trial's page shows."""
    snapshot = chosen.snapshot
    beside = beside_of(chosen)
    sides = {"search": task_rows(snapshot, beside), "holdout": held_rows(snapshot, beside)}
    return pd.DataFrame(
        [
            {
                "side": side,
                "task": row["task"],
                "metric": row["metric"],
                "trial": record.number,
                "name": record.name,
                "percent": cell[0],
                "standard error": cell[1],
            }
            for side, rows in sides.items()
            for row in rows
            for record, cell in zip(beside, row["cells"], strict=True)
        ]
    )

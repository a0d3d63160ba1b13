"""What the pages show, as plain values for their templates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import pandas as pd
from starlette.datastructures import QueryParams

from evomerge.dashboard import figures, galleries
from evomerge.dashboard.compare import MOST, Chosen, compare, recipe_rows
from evomerge.dashboard.depth import depth_of, places_of
from evomerge.dashboard.figures import Figure
from evomerge.dashboard.runs import Run, Runs
from evomerge.dashboard.snapshot import Snapshot
from evomerge.documents import flips
from evomerge.errors import UserError
from evomerge.searching.objective import UNIT_NAMES, amount
from evomerge.searching.record import TrialRecord
from evomerge.searching.run_folder import Side

PAGE = 50
"""Rows of the leaderboard at a time."""
FLIPPED = 100
"""Documents that are listed at a time."""
STATES = ("complete", "pruned", "step", "failed", "interrupted", "running")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How the leaderboard is asked for, from an address."""

    state: str = ""
    method: str = ""
    name: str = ""
    kept: str = ""
    """`yes`: only trials that keep all limits."""
    sort: str = "rank"
    order: str = "down"
    page: int = 1

    @staticmethod
    def of(query: QueryParams) -> "Asked":
        """UserError for values that are none."""
        words = {k: query.get(k, "") for k in ("state", "method", "name", "kept")}
        page = query.get("page", "1")
        if not page.isdecimal() or not 0 < int(page) < 10**6:
            raise UserError(f"page={page}: expected a number from 1")
        order = query.get("order", "down")
        if words["state"] and words["state"] not in STATES:
            raise UserError(f"state={words['state']}: expected one of {', '.join(STATES)}")
        if order not in ("up", "down"):
            raise UserError(f"order={order}: expected up or down")
        return Asked(**words, sort=query.get("sort", "rank"), order=order, page=int(page))

    def filtered(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows that are asked for, in the order asked for."""
        keep = frame["state"] != "waiting"
        if self.state:
            keep &= frame["state"] == self.state
        if self.method:
            keep &= frame["methods"].str.split().apply(lambda own: self.method in own)
        if self.name:
            keep &= frame["name"].str.contains(self.name, case=False, regex=False)
        if self.kept == "yes":
            keep &= frame["kept"]
        found = frame[keep]
        if self.sort == "rank":
            keys = found[["rank", "value", "estimate"]]
            ways = [True, False, False]
            ordered = keys.sort_values(["rank", "value", "estimate"], ascending=ways, kind="stable")
            return found.loc[ordered.index if self.order == "down" else ordered.index[::-1]]
        if self.sort not in frame:
            raise UserError(
                f"sort={self.sort}: expected rank, or one of {', '.join(map(str, frame))}"
            )
        return found.sort_values(self.sort, ascending=self.order == "up", kind="stable")

    def link(self, **changed: Any) -> str:
        """The address's query with some values changed."""
        values = {name: getattr(self, name) for name in self.__slots__} | changed
        default = Asked()
        return "?" + urlencode({k: v for k, v in values.items() if v != getattr(default, k)})


def ready(run: Run) -> Snapshot:
    """UserError while it is being read for the first time."""
    if run.snapshot is None:
        raise UserError(f"{run.name} is still being read, or has not begun")
    return run.snapshot


def choose(runs: Runs, words: Sequence[str], default: str | None) -> list[Chosen]:
    """`12` or a baseline's name, of the default run, or `run/12`; UserError for anything else."""
    found: dict[tuple[str, int], Chosen] = {}
    for word in words:
        name, slash, trial = word.strip().rpartition("/")
        name = name if slash else default or ""
        if not name:
            raise UserError(f"{word!r}: of which run? Expected run/number")
        run = runs[name]
        snapshot = ready(run)
        number = int(trial) if trial.isdecimal() else snapshot.named(trial)
        if number is None:
            raise UserError(f"{word!r} is no trial; expected a number or a baseline's name")
        record = snapshot.index.full(number)
        found[name, number] = Chosen(run=run, snapshot=snapshot, record=record)
    return list(found.values())


def side_of(query: QueryParams) -> Side:
    """UserError for a side that there is none of."""
    side = query.get("side", "search")
    if side == "search":
        return "search"
    if side == "holdout":
        return "holdout"
    raise UserError(f"side={side}: expected search or holdout")


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
        "best": _value_text(snapshot, winner),
        "baseline": _value_text(snapshot, best),
        "verdict": verdict_lines(snapshot)[0] if verdict_lines(snapshot) else "",
        "per hour": snapshot.per_hour() if report.running else None,
        "left": snapshot.remaining(),
    }


def _value_text(snapshot: Snapshot, record: TrialRecord | None) -> str:
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
        "facts": facts(run, snapshot),
        "verdict": verdict_lines(snapshot),
        "conclusion": None if report.verdict is None else report.verdict.conclusion,
        "plateau": None if report.plateau is None else report.plateau.sentence(),
        "notes": report.scale_notes,
        "guidance": report.guidance,
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
        ("best", _value_text(snapshot, snapshot.winner)),
        ("best baseline", _value_text(snapshot, snapshot.best_baseline)),
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


def trial_page(chosen: Chosen, other: Chosen | None, query: QueryParams) -> dict[str, Any]:
    """One trial, beside another where one is chosen."""
    snapshot, record = chosen.snapshot, chosen.record
    report = snapshot.report
    side = side_of(query)
    has_recipe = record.recipe_mapping is not None
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
        "facts": _trial_facts(chosen),
        "warnings": report.warnings(record),
        "figures": [(figure, f"{address}/figures/{figure.name}") for figure in found],
        "yaml": record.recipe.to_yaml() if has_recipe else None,
        "export": f"evomerge export {chosen.run.folder.path} OUT --trial {record.number}",
        "beside": beside,
        "tasks": _task_rows(snapshot, beside),
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


def _trial_facts(chosen: Chosen) -> list[tuple[str, str]]:
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
    mapping = record.recipe_mapping or {}
    names = ("base", *mapping.get("sources", ()))
    return [
        each
        for each in snapshot.report.records
        if each.baseline in names and each.value is not None and each.number != record.number
    ]


def _task_rows(snapshot: Snapshot, beside: Sequence[TrialRecord]) -> list[dict[str, Any]]:
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


def compare_page(chosen: Sequence[Chosen], side: Side, found: Sequence[Figure]) -> dict[str, Any]:
    """Two to six trials side by side. found: what `compare_figures` makes of them."""
    columns = [compare(chosen[0], each, side) for each in chosen[1:]]
    rows = recipe_rows(chosen)
    trials = ",".join(each.key for each in chosen)
    tasks = [*chosen[0].snapshot.tasks, ""]
    return {
        "title": "Compare " + ", ".join(each.record.name for each in chosen),
        "watched": [],
        "chosen": chosen,
        "trials": trials,
        "side": side,
        "summary": [_trial_facts(each)[:2] for each in chosen],
        "rows": [
            (
                task,
                [_own_score(each, task, side) for each in chosen],
                [differences.get(task) for differences, _ in columns],
            )
            for task in tasks
        ],
        "why_not": [why for _, why in columns if why],
        "recipe": rows,
        "differing": sum(differ for _, _, differ in rows),
        "subtracted": any(figure.name.startswith("difference") for figure in found),
        "figures": [(f, f"/compare/figures/{f.name}", f"?trials={quote(trials)}") for f in found],
    }


def _own_score(chosen: Chosen, task: str, side: Side) -> tuple[float, float]:
    """(percent, standard error) of a task, or of the objective for "". NaN where unknown."""
    snapshot, number = chosen.snapshot, chosen.record.number
    if side == "holdout":
        held = snapshot.report.holdout.get(number)
        if held is None or (task and task not in held):
            return float("nan"), float("nan")
        if not task:
            return 100 * snapshot.report.goal.points.value(held), float("nan")
        error = held[task].standard_error
        return 100 * held[task].value, float("nan") if error is None else 100 * error
    if not task:
        return 100 * float(snapshot.points[number]), 100 * float(snapshot.errors[number])
    if task not in snapshot.tasks:
        return float("nan"), float("nan")
    value, error = (
        float(snapshot.index.columns.values(snapshot.tasks[task], snapshot.trials, f)[number])
        for f in ("value", "standard_error")
    )
    return 100 * value, 100 * error


def scores_table(chosen: Chosen) -> pd.DataFrame:
    """One row per task, trial and side: what the trial's page shows."""
    snapshot = chosen.snapshot
    beside = beside_of(chosen)
    sides = {"search": _task_rows(snapshot, beside), "holdout": held_rows(snapshot, beside)}
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


def recipes_table(chosen: Sequence[Chosen]) -> pd.DataFrame:
    """The recipes aligned, one column per trial."""
    _refuse_count(chosen)
    columns = ["value", *(each.key for each in chosen), "differs"]
    rows = [[name, *values, differ] for name, values, differ in recipe_rows(chosen)]
    return pd.DataFrame(rows, columns=columns)


def compare_table(chosen: Sequence[Chosen], side: Side) -> pd.DataFrame:
    """One row per task and trial after the first."""
    _refuse_count(chosen)
    rows = []
    for each in chosen[1:]:
        for task, found in compare(chosen[0], each, side)[0].items():
            rows.append(
                {
                    "task": task or "objective",
                    "first": chosen[0].key,
                    "second": each.key,
                    "difference": found.value,
                    "low": found.low,
                    "high": found.high,
                    "gained": found.gained,
                    "lost": found.lost,
                    "documents": found.documents,
                }
            )
    return pd.DataFrame(rows)


def compare_figures(chosen: Sequence[Chosen]) -> list[Figure]:
    """Heatmaps of the differences of each trial's coefficients from the first's, as far as both
    merge by one method; where there are none, each trial's own weights."""
    _refuse_count(chosen)
    recipes = [each.record.recipe for each in chosen]
    places = places_of(recipes)
    depths = [depth_of(recipe, places) for recipe in recipes]
    found = []
    for place, (each, depth) in enumerate(zip(chosen[1:], depths[1:], strict=True), start=1):
        for parameter in galleries.varying(depth):
            if parameter in depths[0].parameters:
                title = f"{parameter}: {each.key} minus {chosen[0].key}"
                name = f"difference-{place}-{parameter}"
                found.append(figures.differences(depths[0], depth, parameter, title, name))
    found = [figure for figure in found if len(figure.table)]
    if found:
        return found
    return [
        replace(
            figures.coefficients(depth, depth.parameters[0]),
            name=f"coefficients-{place}",
            title=f"{depth.parameters[0]} of {each.key}",
        )
        for place, (each, depth) in enumerate(zip(chosen, depths, strict=True))
    ]


def _refuse_count(chosen: Sequence[Chosen]) -> None:
    if not 2 <= len(chosen) <= MOST:
        raise UserError(
            f"{len(chosen)} trials are chosen; expected 2 to {MOST}, as in ?trials=12,57,203"
        )


def duration(time: timedelta) -> str:
    """`3 h 12 min`, `4 min`, `20 s`."""
    seconds = int(time.total_seconds())
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 60} min" if seconds >= 60 else f"{seconds} s"


def number(value: float | None, digits: int = 1) -> str:
    """A figure for a table; nothing for what is not known."""
    return "" if value is None or value != value else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 1) -> str:
    """The same with its sign."""
    return "" if value is None or value != value else f"{value:+.{digits}f}"


def now() -> str:
    """For a page that is kept."""
    return datetime.now().strftime("%Y-%m-%d %H:%M")


FILTERS: Mapping[str, Callable[..., str]] = {
    "number": number,
    "signed": signed,
    "duration": duration,
    "quote": lambda text: quote(str(text), safe=""),
}

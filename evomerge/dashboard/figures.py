"""Figures of a run: scores, front, holdout, importance of parameters, time."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd

from evomerge.dashboard.figure import (
    BLUE,
    CATEGORIES,
    GREEN,
    GREY,
    MIDDLE,
    ORANGE,
    PURPLE,
    RED,
    ROW,
    Figure,
    base_option,
)
from evomerge.dashboard.snapshot import Snapshot
from evomerge.searching.finalists import score_warnings
from evomerge.searching.front import knee_of, pareto_front
from evomerge.searching.objective import UNIT_NAMES
from evomerge.searching.record import TrialRecord


def scores(snapshot: Snapshot) -> Figure:
    """What trials climb, over their numbers, with the baselines as lines."""
    report, factor = snapshot.report, snapshot.factor
    unit = UNIT_NAMES[report.goal.climbed.unit]
    kinds = {
        "trial": {"itemStyle": {"color": BLUE}, "symbolSize": 6},
        "baseline": {"itemStyle": {"color": ORANGE}, "symbolSize": 8, "symbol": "diamond"},
        "pruned (estimate)": {"itemStyle": {"color": GREY}, "symbolSize": 5, "symbol": "triangle"},
        "gradient step (on a part)": {
            "itemStyle": {"color": PURPLE},
            "symbolSize": 5,
            "symbol": "rect",
        },
        "breaks a constraint": {"itemStyle": {"color": RED}, "symbolSize": 6, "symbol": "pin"},
        "score in doubt": {"itemStyle": {"color": RED}, "symbolSize": 8, "symbol": "arrow"},
    }
    points: dict[str, list[Any]] = {kind: [] for kind in kinds}
    rows = []
    for record in report.records:
        value = record.estimate if record.value is None else record.value
        if value is None:
            continue
        kind = _kind(record, snapshot)
        points[kind].append([record.number, factor * value, record.name])
        rows.append((record.number, record.name, kind, factor * value))
    table = pd.DataFrame(rows, columns=["trial", "name", "kind", "value"])
    kept = [r for r in report.records if r.value is not None and r.feasible]
    best = list(accumulate((factor * (record.value or 0.0) for record in kept), max))
    series: list[dict[str, Any]] = [
        {"type": "scatter", "name": kind, "data": own, **kinds[kind]}
        for kind, own in points.items()
        if own
    ]
    series.append(
        {
            "type": "line",
            "name": "best so far",
            "step": "end",
            "showSymbol": False,
            "lineStyle": {"width": 2},
            "itemStyle": {"color": GREEN},
            "data": [[r.number, value] for r, value in zip(kept, best, strict=True)],
            "markLine": _baseline_lines(snapshot),
        }
    )
    shown = [factor * r.value for r in _lines(snapshot) if r.value is not None]
    winner = snapshot.winner
    if winner is not None and winner.value is not None:
        series.append(
            {
                "type": "scatter",
                "name": "winner" if report.verdict is not None else "best so far, as ranked",
                "symbolSize": 16,
                "itemStyle": {"color": "transparent", "borderColor": RED, "borderWidth": 2},
                "data": [[winner.number, factor * winner.value, winner.name]],
            }
        )
    low, hidden = _floor([row[3] for row in rows], shown[:1]) if rows else (None, 0)
    note = f"; {hidden} lie below the figure" if hidden else ""
    summary = f"{len(table)} trials over their number, in {unit}{note}. "
    if best:
        summary += f"The best reached {best[-1]:.3g} at trial {kept[int(np.argmax(best))].number}."
    option = {
        **base_option(tooltip="point"),
        "legend": {"type": "scroll", "bottom": 0},
        "grid": {"left": 64, "right": 24, "top": 24, "bottom": 72},
        "xAxis": {"type": "value", "name": "trial", "nameLocation": "middle", "nameGap": 26},
        "yAxis": {
            "type": "value",
            "name": unit,
            "scale": True,
            "min": low,
            "axisLabel": {"showMinLabel": low is None},
        },
        "dataZoom": [{"type": "inside"}, {"type": "inside", "orient": "vertical"}],
        "series": series,
    }
    return Figure(
        name="scores",
        title=f"Scores over trials{note}",
        summary=summary,
        option=option,
        table=table,
        height=420,
    )


def _kind(record: TrialRecord, snapshot: Snapshot) -> str:
    if record.state == "step":
        return "gradient step (on a part)"
    if record.value is None:
        return "pruned (estimate)"
    if not record.feasible:
        return "breaks a constraint"
    if record.baseline is not None:
        return "baseline"
    doubted = score_warnings(record, snapshot.base, snapshot.report.holdout_answers)
    return "score in doubt" if doubted else "trial"


def _lines(snapshot: Snapshot) -> list[TrialRecord]:
    """The best baseline, and the base."""
    found = {r.number: r for r in (snapshot.best_baseline, snapshot.base) if r is not None}
    return list(found.values())


def _baseline_lines(snapshot: Snapshot) -> dict[str, Any]:
    best = snapshot.best_baseline
    return {
        "symbol": "none",
        "silent": True,
        "lineStyle": {"type": "dashed", "color": ORANGE},
        "label": {"formatter": "{b}", "position": "insideEndTop"},
        "data": [
            {
                "name": f"best baseline: {r.name}" if r is best else r.name,
                "yAxis": snapshot.factor * (r.value or 0.0),
            }
            for r in _lines(snapshot)
        ],
    }


def _floor(values: Sequence[float], shown: Sequence[float]) -> tuple[float | None, int]:
    """Where the figure ends below, and how many lie lower: a few bad merges would flatten all
    others into a line. shown: what must lie inside."""
    best, middle = max(values), float(np.median(values))
    floor = min([best - 4 * (best - middle), *(value - (best - value) / 10 for value in shown)])
    hidden = sum(value < floor for value in values)
    return (float(f"{floor:.3g}"), hidden) if hidden and floor < best else (None, 0)


def front(snapshot: Snapshot) -> Figure | None:
    """Of two or more objectives: the first two, with the Pareto front. None without a front."""
    goal, records = snapshot.report.goal, snapshot.report.records
    scored = [record for record in records if len(record.values) > 1]
    if not goal.several or not scored:
        return None
    members, values = pareto_front(records, goal)
    names = list(goal.split(goal.judged))
    unit = UNIT_NAMES[goal.judged.unit]
    factor = 1 if goal.judged.unit == "nats" else 100
    knee = knee_of(members, values).number
    ordered = sorted(members, key=lambda record: values[record.number][0])
    rows: list[list[Any]] = [
        [record.number, record.name, *(factor * v for v in values[record.number])]
        for record in ordered
    ]
    table = pd.DataFrame(rows, columns=["trial", "name", *names])
    data = [[row[2], row[3], row[1], row[0]] for row in rows]
    series = [
        {
            "type": "line",
            "name": "front",
            "data": data,
            "symbolSize": 9,
            "itemStyle": {"color": GREEN},
        },
        {
            "type": "scatter",
            "name": "knee",
            "data": [row for row in data if row[3] == knee],
            "symbol": "diamond",
            "symbolSize": 16,
            "itemStyle": {"color": RED},
        },
    ]
    option = {
        **base_option(tooltip="front"),
        "legend": {"bottom": 0},
        "grid": {"left": 64, "right": 24, "top": 24, "bottom": 72},
        "xAxis": {"type": "value", "name": f"{names[0]}, {unit}", "scale": True, **MIDDLE},
        "yAxis": {"type": "value", "name": f"{names[1]}, {unit}", "scale": True},
        "series": series,
    }
    summary = f"{len(rows)} trials that no other dominates, by {names[0]} and {names[1]}."
    return Figure(name="front", title="Pareto front", summary=summary, option=option, table=table)


def holdout(snapshot: Snapshot) -> Figure | None:
    """Finalists and baselines on the documents that the search never saw. None before the end."""
    report = snapshot.report
    if not report.holdout:
        return None
    objective = report.goal.points
    rows = []
    for number, metrics in report.holdout.items():
        errors = [
            (weight * (metrics[task].standard_error or 0.0)) ** 2
            for task, weight in objective.weights().items()
        ]
        record = report.by_number[number]
        rows.append(
            (
                number,
                record.name,
                "baseline" if record.baseline else "candidate",
                100 * objective.value(metrics),
                100 * float(np.sqrt(sum(errors))),
            )
        )
    rows.sort(key=lambda row: row[3])
    unit = UNIT_NAMES[objective.unit]
    table = pd.DataFrame(rows, columns=["trial", "name", "kind", unit, "standard error"])
    winner = snapshot.winner
    best = None if winner is None else winner.number
    kinds = {"winner": GREEN, "candidate": BLUE, "baseline": ORANGE}
    series = [
        {
            "type": "bar",
            "name": kind,
            "stack": "all",
            "itemStyle": {"color": colour},
            "label": {"show": True, "position": "right"},
            "data": [
                {"value": round(row[3], 1), "error": round(row[4], 1), "trial": row[0]}
                if kind == ("winner" if row[0] == best else row[2])
                else None
                for row in rows
            ],
        }
        for kind, colour in kinds.items()
    ]
    option = {
        **base_option(tooltip="bar"),
        "legend": {"bottom": 0},
        "grid": {"left": 8, "right": 48, "top": 8, "bottom": 64, "containLabel": True},
        "xAxis": {"type": "value", "name": unit, **MIDDLE},
        "yAxis": {"type": "category", "data": [row[1] for row in rows]},
        "series": series,
    }
    top = rows[-1]
    return Figure(
        name="holdout",
        title="On the holdout documents",
        summary=f"{len(rows)} models; {top[1]} is ahead with {top[3]:.1f} {unit}.",
        option=option,
        table=table.iloc[::-1].reset_index(drop=True),
        height=90 + ROW * len(rows),
    )


def importance(shares: Mapping[str, float], trials: int) -> Figure:
    """Which parameters tell good trials from others. shares: as `importance.py` computes them."""
    rows = sorted(shares.items(), key=lambda row: row[1])[-25:]
    option = {
        **base_option(tooltip="bar"),
        "grid": {"left": 8, "right": 48, "top": 8, "bottom": 40, "containLabel": True},
        "xAxis": {"type": "value", "name": "share of importance, %", **MIDDLE},
        "yAxis": {"type": "category", "data": [name for name, _ in rows]},
        "series": [
            {
                "type": "bar",
                "name": "importance",
                "itemStyle": {"color": BLUE},
                "data": [round(100 * value, 2) for _, value in rows],
            }
        ],
    }
    top = ", ".join(name for name, _ in rows[::-1][:3])
    return Figure(
        name="importance",
        title="Which parameters matter",
        summary=f"Importance by PED-ANOVA over {trials} trials scored in full; first come {top}.",
        option=option,
        table=pd.DataFrame(rows[::-1], columns=["parameter", "share"]),
        height=60 + ROW * len(rows),
    )


def time_spent(snapshot: Snapshot) -> Figure:
    """Where the time of all trials went, by phase."""
    totals: dict[str, float] = {}
    for record in snapshot.report.records:
        for phase, seconds in record.seconds.items():
            totals[phase] = totals.get(phase, 0.0) + seconds
    middle = snapshot.report.median_seconds()
    rows = [(phase, seconds / 60, middle[phase]) for phase, seconds in totals.items()]
    table = pd.DataFrame(rows, columns=["phase", "minutes in all", "median seconds per trial"])
    option = {
        **base_option(tooltip="bar"),
        "legend": {"bottom": 0},
        "grid": {"left": 8, "right": 24, "top": 8, "bottom": 64, "containLabel": True},
        "xAxis": {"type": "value", "name": "minutes", **MIDDLE},
        "yAxis": {"type": "category", "data": ["all trials"]},
        "series": [
            {
                "type": "bar",
                "stack": "time",
                "name": phase,
                "itemStyle": {"color": colour},
                "data": [round(minutes, 3)],
            }
            for (phase, minutes, _), colour in zip(rows, CATEGORIES, strict=False)
        ],
    }
    words = ", ".join(f"{phase} {minutes:.1f} min" for phase, minutes, _ in rows)
    return Figure(
        name="time",
        title="Where the time went",
        summary=f"By phase: {words}.",
        option=option,
        table=table,
        height=170,
    )

"""Tables and figures of search_methods.py, from its results alone."""

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from tests.benchmarks.tables import interval, p_value, spread, table

Rows = Mapping[int, Mapping[str, Any]]
"""Seed -> what search_methods.py wrote of it."""
Found = Mapping[str, Mapping[str, Rows]]
"""Kind of family -> method -> its seeds; only what is there."""
RIVAL = "cma_es"
"""The opponent whose final score is looked for on the way of evomerge."""


def read_results(out: Path, kinds: Sequence[str], methods: Sequence[str]) -> Found:
    """Every result of these kinds and methods; ValueError where their limits differ."""
    found: dict[str, dict[str, Rows]] = {}
    for kind in kinds:
        for method in methods:
            rows = {
                int(path.stem.removeprefix("seed-")): json.loads(path.read_text())
                for path in sorted((out / kind / method).glob("seed-*.json"))
            }
            if rows:
                found.setdefault(kind, {})[method] = rows
    for kind, named in found.items():
        limits = {row["limit"] for rows in named.values() for row in rows.values()}
        if len(limits) > 1:
            raise ValueError(f"{kind}: results of {sorted(limits)} documents; expected one limit")
    return found


def final(rows: Rows) -> list[float]:
    """Points on the holdout of what is exported, one per seed."""
    return [row["points"] for row in rows.values()]


def curve(rows: Rows) -> dict[float, list[float]]:
    """Share of the documents -> points on the holdout of the best candidate so far; shares at
    which not every seed had one are left out. A method that ended before keeps its last."""
    known = [{float(share): value for share, value in row["at"].items()} for row in rows.values()]
    shares = sorted(set.intersection(*(set(own) for own in known)))
    return {share: [own[share] for own in known] for share in shares}


def paired(first: Rows, second: Rows) -> list[float]:
    """First minus second, of the seeds that both have."""
    return [first[seed]["points"] - second[seed]["points"] for seed in first if seed in second]


def share_reached(means: Mapping[float, float], level: float) -> float | None:
    """The least share of the documents at which a curve reaches a level, linear between the shares
    at which it is known; None where it does not."""
    points = sorted(means.items())
    if points and points[0][1] >= level:
        return points[0][0]
    for (before, low), (after, high) in pairwise(points):
        if high >= level:
            return before + (after - before) * (level - low) / (high - low)
    return None


def scores(named: Mapping[str, Rows]) -> str:
    """One row per method."""
    lines = []
    for method, rows in named.items():
        used = [sum(row["documents"].values()) for row in rows.values()]
        limit = next(iter(rows.values()))["limit"]
        searched = [row["search points"] for row in rows.values()]
        shown = [value for value in searched if value is not None]
        kinds = {kind for row in rows.values() for kind in row["documents"]}
        lines.append(
            [
                method,
                spread(final(rows)),
                spread(shown) if len(shown) == len(searched) else "",
                ", ".join(
                    f"{statistics.fmean(r['documents'].get(kind, 0) for r in rows.values()):.0f} "
                    f"{kind}"
                    for kind in sorted(kinds)
                ),
                f"{100 * max(used) / limit:.3g}",
                f"{statistics.fmean(row['trials'] for row in rows.values()):.0f}",
                str(len(rows)),
            ]
        )
    head = ["method", "holdout points", "points on the search documents", "documents"]
    return table([*head, "% of the limit, at most", "trials", "seeds"], lines)


def differences(named: Mapping[str, Rows], methods: Sequence[str]) -> str:
    """Each of `methods` minus every other method, paired by seed."""
    lines = []
    for first in methods:
        for second, rows in named.items():
            values = paired(named[first], rows)
            if second == first or not values:
                continue
            chance = p_value(values)
            told = "" if chance is None else f"{chance:.2g}"
            lines.append([f"{first} minus {second}", interval(values), told, str(len(values))])
    return table(["", "holdout points (95%)", "p (paired t)", "seeds"], lines)


def reached(named: Mapping[str, Rows], methods: Sequence[str]) -> str:
    """At which share of the documents each of `methods` is as good as the rival at its end."""
    level = statistics.fmean(final(named[RIVAL]))
    lines = []
    for method in methods:
        means = {share: statistics.fmean(own) for share, own in curve(named[method]).items()}
        share = share_reached(means, level)
        told = "not reached" if share is None else f"{100 * share:.0f} %"
        lines.append(f"{method} has the final mean of {RIVAL} ({level:.1f} points) at: {told}")
    return "\n".join(lines)


def report(found: Found) -> str:
    """All tables, as Markdown."""
    parts = []
    for kind, named in found.items():
        parts += [f"## {kind}", scores(named)]
        own = [method for method in named if method.partition(":")[0] == "evomerge"]
        if own and len(named) > 1:
            parts.append(differences(named, own))
        if own and RIVAL in named:
            parts.append(reached(named, own))
    return "\n\n".join(parts)


def draw(found: Found, path: Path) -> None:
    """One panel per family: mean and standard deviation of the best so far over the documents."""
    methods = list(dict.fromkeys(method for named in found.values() for method in named))
    colours = {method: f"C{place}" for place, method in enumerate(methods)}
    columns = min(3, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes, (kind, named) in zip(panels, found.items(), strict=False):
        for method, rows in named.items():
            points = curve(rows)
            shares = [100 * share for share in points]
            means = [statistics.fmean(own) for own in points.values()]
            widths = [statistics.stdev(own) if len(own) > 1 else 0.0 for own in points.values()]
            low = [mean - width for mean, width in zip(means, widths, strict=True)]
            high = [mean + width for mean, width in zip(means, widths, strict=True)]
            heavy = 2.5 if method.startswith("evomerge") else 1.2
            (line,) = axes.plot(shares, means, color=colours[method], linewidth=heavy, marker=".")
            line.set_label(method)
            axes.fill_between(shares, low, high, color=colours[method], alpha=0.12, linewidth=0)
        axes.set(title=kind, xlabel="% of the documents", ylabel="points on the holdout")
        axes.legend(fontsize="x-small", loc="lower right")
    for axes in list(figure.axes)[len(found) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def write_report(
    out: Path, folder: Path, kinds: Sequence[str], methods: Sequence[str], command: str
) -> None:
    """Writes tables.md and holdout.png of what was measured so far into the folder."""
    found = read_results(out, kinds, methods)
    folder.mkdir(parents=True, exist_ok=True)
    machine = f"one thread of a {platform.machine()} CPU per process, torch {torch.__version__}"
    head = f"`{command}`, {date.today()}, {machine}. Mean ± standard deviation over seeds."
    (folder / "tables.md").write_text(f"# Tables\n\n{head}\n\n{report(found)}\n")
    draw(found, folder / "holdout.png")

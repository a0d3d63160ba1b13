"""What the page that compares trials shows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pandas as pd

from evomerge.dashboard import galleries, heatmaps
from evomerge.dashboard.compare import MOST, Chosen, compare, recipe_rows
from evomerge.dashboard.depth import depth_of, places_of
from evomerge.dashboard.figure import Figure
from evomerge.errors import UserError
from evomerge.searching.run_folder import Side


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


def recipes_table(chosen: Sequence[Chosen]) -> pd.DataFrame:
    """The recipes aligned, one column per trial."""
    refuse_count(chosen)
    columns = ["value", *(each.key for each in chosen), "differs"]
    rows = [[name, *values, differ] for name, values, differ in recipe_rows(chosen)]
    return pd.DataFrame(rows, columns=columns)


def compare_table(chosen: Sequence[Chosen], side: Side) -> pd.DataFrame:
    """One row per task and trial after the first."""
    refuse_count(chosen)
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
    refuse_count(chosen)
    recipes = [each.record.recipe for each in chosen]
    places = places_of(recipes)
    depths = [depth_of(recipe, places) for recipe in recipes]
    found = []
    for place, (each, depth) in enumerate(zip(chosen[1:], depths[1:], strict=True), start=1):
        for parameter in galleries.varying(depth):
            if parameter in depths[0].parameters:
                title = f"{parameter}: {each.key} minus {chosen[0].key}"
                name = f"difference-{place}-{parameter}"
                found.append(heatmaps.differences(depths[0], depth, parameter, title, name))
    found = [figure for figure in found if len(figure.table)]
    if found:
        return found
    return [
        replace(
            heatmaps.coefficients(depth, depth.parameters[0]),
            name=f"coefficients-{place}",
            title=f"{depth.parameters[0]} of {each.key}",
        )
        for place, (each, depth) in enumerate(zip(chosen, depths, strict=True))
    ]


def refuse_count(chosen: Sequence[Chosen]) -> None:
    if not 2 <= len(chosen) <= MOST:
        raise UserError(
            f"{len(chosen)} trials are chosen; expected 2 to {MOST}, as in ?trials=12,57,203"
        )

"""Figures of a recipe: its methods, coefficients, and their differences, over the depth."""

from collections.abc import Sequence

import pandas as pd

from evomerge.dashboard.depth import Depth
from evomerge.dashboard.figure import (
    CATEGORIES,
    DIVERGING,
    MIDDLE,
    ROW,
    SEQUENTIAL,
    Figure,
    base_option,
)


def coefficients(depth: Depth, parameter: str) -> Figure:
    """One parameter of a recipe as a heatmap: sources (and parts) over depth."""
    own = depth.cells[depth.cells["parameter"] == parameter]
    return _heatmap(own, depth.places, "value", f"coefficients-{parameter}", parameter, SEQUENTIAL)


def differences(first: Depth, second: Depth, parameter: str, title: str, name: str) -> Figure:
    """One parameter of a second recipe minus that of a first, where both merge by one method."""
    tables = [d.cells[d.cells["parameter"] == parameter] for d in (first, second)]
    keys = ["place", "source", "method"]
    if any(table.duplicated(keys).any() for table in tables):
        keys.append("part")
    both = tables[0].merge(tables[1], on=keys, suffixes=("_first", "_second"))
    if "part" not in keys:
        both["part"] = both["part_second"]
    both["difference"] = both["value_second"] - both["value_first"]
    places = [place for place in second.places if place in set(both["place"])]
    return _heatmap(both, places, "difference", name, title, DIVERGING, centred=True)


def methods(depth: Depth) -> Figure:
    """Which method merges which layer and part, by colour."""
    own = depth.cells.drop_duplicates(["place", "part"])
    names = list(dict.fromkeys(own["method"]))
    parts = list(dict.fromkeys(own["part"]))
    rows = zip(own["place"].tolist(), own["part"].tolist(), own["method"].tolist(), strict=True)
    data = [
        [depth.places.index(place), parts.index(part), names.index(method), method]
        for place, part, method in rows
    ]
    option = {
        **base_option(tooltip="cell"),
        "grid": {"left": 8, "right": 16, "top": 8, "bottom": 76, "containLabel": True},
        "xAxis": {"type": "category", "data": depth.places, "name": "layer", **MIDDLE},
        "yAxis": {"type": "category", "data": parts},
        "visualMap": {
            "type": "piecewise",
            "orient": "horizontal",
            "bottom": 0,
            "left": "center",
            "dimension": 2,
            "pieces": [
                {"value": place, "label": name, "color": CATEGORIES[place % len(CATEGORIES)]}
                for place, name in enumerate(names)
            ],
        },
        "series": [{"type": "heatmap", "name": "method", "data": data, "itemStyle": _EDGE}],
    }
    return Figure(
        name="methods",
        title="Methods",
        summary=f"{', '.join(names)} over {len(depth.places)} places.",
        option=option,
        table=own[["place", "part", "method"]],
        height=130 + ROW * len(parts),
    )


def _heatmap(
    cells: pd.DataFrame,
    places: Sequence[str],
    column: str,
    name: str,
    title: str,
    colours: Sequence[str],
    *,
    centred: bool = False,
) -> Figure:
    one_part = not cells.duplicated(["place", "source"]).any()
    columns = [cells[name].tolist() for name in ("place", "part", "source", column, "method")]
    found = list(zip(*columns, strict=True))
    labels = [row[2] if one_part else f"{row[2]} · {row[1]}" for row in found]
    rows = list(dict.fromkeys(labels))[::-1]
    x, y = {p: i for i, p in enumerate(places)}, {r: i for i, r in enumerate(rows)}
    data = [
        [x[row[0]], y[label], round(row[3], 4), row[4]]
        for row, label in zip(found, labels, strict=True)
    ]
    values: list[float] = [round(row[3], 4) for row in found] or [0.0]
    reach = max(abs(min(values)), abs(max(values))) or 1.0
    low, high = (-reach, reach) if centred else (min(0.0, *values), max(values) or 1.0)
    option = {
        **base_option(tooltip="cell"),
        "grid": {"left": 8, "right": 16, "top": 8, "bottom": 84, "containLabel": True},
        "xAxis": {"type": "category", "data": list(places), "name": "layer", **MIDDLE},
        "yAxis": {"type": "category", "data": rows},
        "visualMap": {
            "min": low,
            "max": high,
            "precision": 2,
            "dimension": 2,
            "calculable": True,
            "orient": "horizontal",
            "bottom": 0,
            "left": "center",
            "inRange": {"color": list(colours)},
        },
        "series": [
            {
                "type": "heatmap",
                "name": title,
                "data": data,
                "itemStyle": _EDGE,
                "label": {"show": len(data) <= 60, "formatter": "{@[2]}"},
            }
        ],
    }
    spread = f"from {min(values):.3g} to {max(values):.3g}"
    return Figure(
        name=name,
        title=title,
        summary=f"{title} of {len(rows)} rows over {len(places)} places, {spread}.",
        option=option,
        table=cells[["place", "part", "source", "method", column]],
        height=150 + ROW * len(rows),
    )


_EDGE = {"borderColor": "rgba(128,128,128,0.35)", "borderWidth": 1}

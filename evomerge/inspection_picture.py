"""Heatmaps of an inspection: a small picture per source and per pair, on common scales."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import SubFigure
from matplotlib.patches import Rectangle

from evomerge.architectures import LAYER_PARTS
from evomerge.inspection import Inspection

_ACROSS = 4  # pictures side by side
_WIDTH, _HEIGHT, _TITLE = 14.4, 1.15, 0.45  # inches: of the whole, a picture, a section's title
_FIGURES = 8  # layers up to which each cell says its number
_TICKS = 8  # layers that are numbered
_BEFORE, _AFTER = ("embeddings",), ("final_norm", "head")
_WORDS = {"embeddings": "embed", "final_norm": "final norm", "head": "head"}
_NONE = "0.88"  # grey: there is no such number


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """Pictures that share a scale."""

    title: str
    columns: Sequence[str]
    """Of the table; each is a picture, called by its name."""
    colours: str
    low: float
    high: float
    digits: int = 2
    named: bool = True
    """Whether each picture has its column's name above it."""


def draw(inspection: Inspection, path: Path) -> None:
    """Per layer and part: ‖δ‖ / ‖w0‖ of each source, the cosine of each pair, sign conflicts over
    all pairs, and the mean effective rank (stable rank where that was left out).

    The embeddings stand to the left of the layers, the final norm and the head to the right.
    """
    table, rows = _table(inspection), _sections(inspection)
    lines = [max(math.ceil(len(s.columns) / _ACROSS) for s in row) for row in rows]
    heights = [_TITLE + count * _HEIGHT for count in lines]
    figure = plt.figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    strips = np.atleast_1d(np.asarray(figure.subfigures(len(rows), 1, height_ratios=heights)))
    for row, strip, count in zip(rows, strips, lines, strict=True):
        places = np.atleast_1d(np.asarray(strip.subfigures(1, len(row))))
        for section, part in zip(row, places, strict=True):
            _draw_section(part, section, table, count)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_section(part: SubFigure, section: _Section, table: pd.DataFrame, count: int) -> None:
    part.suptitle(section.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    across = min(_ACROSS, len(section.columns))
    axes = part.subplots(count, across, squeeze=False)
    for axis in axes.flat[len(section.columns) :]:
        axis.set_axis_off()
    scales = [
        _heatmap(axis, table, column, section)
        for axis, column in zip(axes.flat, section.columns, strict=False)
    ]
    if section.named:
        for axis, column in zip(axes.flat, section.columns, strict=False):
            axis.set_title(column.replace("·", " · "), fontsize=9)
    bar = part.colorbar(scales[0], ax=axes, aspect=10 * count, pad=0.01, fraction=0.05)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """One column of a heatmap: a layer, or something outside the layers."""

    word: str
    is_layer: bool
    left: float
    right: float
    values: Sequence[float]
    """Per part of a layer; NaN: there is no such number."""

    @property
    def middle(self) -> float:
        return (self.left + self.right) / 2


def _columns(table: pd.DataFrame, column: str, parts: Sequence[str]) -> list[_Column]:
    values = {
        (int(row["layer"]), str(row["part"])): float(row[column])
        for row in table.to_dict("records")
    }
    layers = range(int(table["layer"].max()) + 1)
    wide, gap = max(1.0, 0.07 * len(layers)), max(0.15, 0.02 * len(layers))
    found: list[_Column] = []

    def add(word: str, is_layer: bool, width: float, numbers: Sequence[float]) -> None:
        left = found[-1].right if found else 0.0
        left += 0.0 if not found or (is_layer and found[-1].is_layer) else gap
        found.append(
            _Column(word=word, is_layer=is_layer, left=left, right=left + width, values=numbers)
        )

    def add_ends(names: Sequence[str]) -> None:
        for part in names:
            if (-1, part) in values:
                add(_WORDS[part], False, wide, [values[-1, part]] * len(parts))

    add_ends(_BEFORE)
    for layer in layers:
        add(str(layer), True, 1.0, [values.get((layer, part), math.nan) for part in parts])
    add_ends(_AFTER)
    return found


def _heatmap(axis: Axes, table: pd.DataFrame, column: str, section: _Section) -> ScalarMappable:
    """Rows are the parts of a layer; what lies outside the layers fills a whole column."""
    parts = [part for part in LAYER_PARTS if part in set(table["part"])]
    columns = _columns(table, column, parts)
    scale = ScalarMappable(Normalize(section.low, section.high), section.colours)
    few = sum(each.is_layer for each in columns) <= _FIGURES
    for each in columns:
        cells = list(enumerate(each.values)) if each.is_layer else [(0, each.values[0])]
        height = 1 if each.is_layer else len(parts)
        for row, value in cells:
            colour = scale.to_rgba(np.asarray(value)) if math.isfinite(value) else _NONE
            size = (each.right - each.left, height)
            axis.add_patch(
                Rectangle((each.left, row), *size, facecolor=colour, edgecolor="w", linewidth=0.4)
            )
            word = f"{value:.{section.digits}f}" if few else "" if each.is_layer else each.word
            if math.isfinite(value) or not few:
                axis.text(
                    each.middle,
                    row + height / 2,
                    word,
                    ha="center",
                    va="center",
                    rotation=0 if few else 90,
                    fontsize=7,
                    color="black" if _is_bright(colour) else "white",
                )
    _label(axis, columns, parts, few)
    return scale


def _is_bright(colour: Any) -> bool:
    red, green, blue, _ = to_rgba(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue > 0.55


def _label(axis: Axes, columns: Sequence[_Column], parts: Sequence[str], few: bool) -> None:
    """Names of parts, numbers of some layers, and, where there is room, what the ends are."""
    axis.set_xlim(columns[0].left, columns[-1].right)
    axis.set_ylim(len(parts), 0)
    step = math.ceil(sum(each.is_layer for each in columns) / _TICKS)
    shown = [c for c in columns if (int(c.word) % step == 0 if c.is_layer else few)]
    axis.set_xticks([c.middle for c in shown], [c.word for c in shown])
    axis.set_yticks([row + 0.5 for row in range(len(parts))], parts)
    axis.tick_params(length=0, labelsize=8)
    axis.spines[:].set_visible(False)


def _sections(inspection: Inspection) -> list[list[_Section]]:
    """Rows of the picture, from top to bottom."""
    table = inspection.table(full=True)
    sources = list(dict.fromkeys(inspection.vectors["source"]))
    rank = "effective_rank" if "effective_rank" in table else "stable_rank"
    size = _Section(
        title="size of the task vector beside the base's weights, ‖δ‖ / ‖w0‖",
        columns=sources,
        colours="viridis",
        low=0.0,
        high=_most(table[sources]),
        digits=3,
    )
    last = []
    if rank in table:
        most = _most(table[[rank]])
        title = f"{rank.replace('_', ' ')} of the task vectors of matrices, mean over the sources"
        last = [
            _Section(
                title=title,
                columns=[rank],
                colours="cividis",
                low=0.0,
                high=most,
                digits=int(most < 20),
                named=False,
            )
        ]
    if not len(inspection.pairs):
        return [[size], last] if last else [[size]]
    pairs = [c for c in inspection.cosines().columns if c not in ("layer", "part")]
    cosine = _Section(
        title="cosine between two task vectors", columns=pairs, colours="RdBu_r", low=-1.0, high=1.0
    )
    conflicts = _Section(
        title="share of entries with opposed signs, over all pairs",
        columns=["conflicts"],
        colours="magma",
        low=0.0,
        high=max(0.5, _most(table[["conflicts"]])),
        named=False,
    )
    return [[size], [cosine], [conflicts, *last]]


def _table(inspection: Inspection) -> pd.DataFrame:
    table = inspection.table(full=True)
    if not len(inspection.pairs):
        return table
    return table.merge(inspection.cosines(), on=["layer", "part"])


def _most(table: pd.DataFrame) -> float:
    """The largest finite entry, as the upper end of a scale."""
    numbers = table.to_numpy(dtype=float)
    return float(numbers[np.isfinite(numbers)].max(initial=0.0)) or 1.0

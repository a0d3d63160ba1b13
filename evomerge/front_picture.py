"""A Pareto front as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from evomerge.searching.objective import UNIT_NAMES, Objective
from evomerge.searching.record import TrialRecord


def draw_front(
    figure: Figure,
    axes: Any,
    title: str,
    parts: Mapping[str, Objective],
    values: Mapping[int, tuple[float, ...]],
    trials: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    knee: TrialRecord,
) -> None:
    """Trials by the first two objectives; the third is their colour.

    parts: the objectives by name. values: trial number -> its value of each, of the trials to show.
    """
    factors = [1 if part.unit == "nats" else 100 for part in parts.values()]
    labels = [f"{name}, {UNIT_NAMES[part.unit]}" for name, part in parts.items()]

    def places(records: Sequence[TrialRecord]) -> list[list[float]]:
        known = [values[record.number] for record in records if record.number in values]
        return [[factor * own[n] for own in known] for n, factor in enumerate(factors)]

    third = len(factors) > 2
    plain = [record for record in trials if record.baseline is None and record.number in values]
    baselines = [record for record in trials if record.baseline and record.number in values]
    every = places([*plain, *baselines])
    shades = {"vmin": min(every[2]), "vmax": max(every[2]), "cmap": "viridis"} if third else {}
    groups = [(plain, "trial", "o", "tab:blue"), (baselines, "baseline", "s", "tab:orange")]
    for records, label, marker, colour in groups:
        spots = places(records)
        style: dict[str, Any] = {"c": spots[2], **shades} if third else {"color": colour}
        drawn = axes.scatter(spots[0], spots[1], s=18, marker=marker, label=label, **style)
    if third:
        figure.colorbar(drawn, ax=axes, label=labels[2])
    spots = places(front)
    axes.scatter(spots[0], spots[1], s=60, label="front", facecolors="none", edgecolors="k")
    if not third and all(spot == sorted(spot, reverse=not n) for n, spot in enumerate(spots)):
        axes.step(spots[0], spots[1], where="post", color="tab:green")
    spots = places([knee])
    axes.scatter(spots[0], spots[1], s=140, marker="*", color="tab:red", label="knee")
    for record in (record for record in front if record.number in values):
        own = places([record])
        place = (own[0][0], own[1][0])
        axes.annotate(record.name, place, xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    axes.legend(loc="best")

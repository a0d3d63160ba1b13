"""A Pareto front as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from evomerge.searching.objective import UNIT_NAMES, Goal
from evomerge.searching.record import TrialRecord


def draw_front(
    figure: Figure,
    axes: Any,
    goal: Goal,
    values: Mapping[int, tuple[float, ...]],
    trials: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    knee: TrialRecord,
) -> None:
    """Trials by the first two objectives on the search documents; the third is their colour.

    values: trial number -> its value of each objective, of the trials that are judged by them.
    """
    parts = goal.split(goal.judged)
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
    for records, label, marker, colour in (
        (plain, "trial", "o", "tab:blue"),
        (baselines, "baseline", "s", "tab:orange"),
    ):
        spots = places(records)
        style: dict[str, Any] = {"c": spots[2], **shades} if third else {"color": colour}
        drawn = axes.scatter(spots[0], spots[1], s=18, marker=marker, label=label, **style)
    if third:
        figure.colorbar(drawn, ax=axes, label=labels[2])
    spots = places(front)
    if third:
        axes.scatter(spots[0], spots[1], s=60, label="front", facecolors="none", edgecolors="k")
    else:
        axes.step(spots[0], spots[1], where="pre", color="tab:green", marker="o", label="front")
    spots = places([knee])
    axes.scatter(spots[0], spots[1], s=140, marker="*", color="tab:red", label="knee")
    for record in front:
        own = places([record])
        place = (own[0][0], own[1][0])
        axes.annotate(record.name, place, xytext=(4, 4), textcoords="offset points", fontsize=8)
    title = "The front on the search documents"
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    axes.legend(loc="lower left")

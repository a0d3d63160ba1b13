"""Draws a run into one picture file: scores over trials, weights, the holdout."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from evomerge.errors import UserError
from evomerge.front_picture import draw_front
from evomerge.recipe import Recipe
from evomerge.report import RunReport, read_run
from evomerge.searching.front import knee_of, pareto_front
from evomerge.searching.objective import UNIT_NAMES
from evomerge.searching.record import TrialRecord
from evomerge.searching.verdict import Verdict


def draw_run(run: Path | str, out: Path | str, storage: str | None = None) -> None:
    """Draws a run into a picture file: scores over trials, the winner's weights, the holdout."""
    report = read_run(run, storage)
    if not report.ranked:
        raise UserError(f"{run}: has no scored trial to draw yet")
    bars = max(4.0, 0.25 * len(report.holdout))  # inches
    figure = Figure(figsize=(12, 4 + bars), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.4, 1), height_ratios=(4, bars))
    if report.goal.several:
        _draw_fronts(figure, figure.add_subplot(grid[0, :]), figure.add_subplot(grid[1, 1]), report)
    else:
        _draw_scores(figure.add_subplot(grid[0, :]), report)
        _draw_holdout(figure.add_subplot(grid[1, 1]), report)
    _draw_weights(figure, figure.add_subplot(grid[1, 0]), report)
    try:
        figure.savefig(out, dpi=110)
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: cannot be drawn: {error}") from error


def _draw_fronts(figure: Figure, above: Any, below: Any, report: RunReport) -> None:
    """The front on the search documents, and the same trials on the holdout."""
    goal, records = report.goal, report.records
    front, values = pareto_front(records, goal)
    knee = knee_of(front, values)
    title = "The front on the search documents"
    draw_front(figure, above, title, goal.split(goal.judged), values, records, front, knee)
    points = goal.split(goal.points)
    held = {
        number: tuple(part.value(metrics) for part in points.values())
        for number, metrics in report.holdout.items()
    }
    if knee.number in held:
        title = "The same on the holdout documents"
        draw_front(figure, below, title, points, held, records, front, knee)
    else:
        below.text(0.5, 0.5, "holdout documents: not scored yet", ha="center", va="center")
        below.set_axis_off()


def _draw_scores(axes: Any, report: RunReport) -> None:
    unit = report.goal.climbed.unit
    factor = 1 if unit == "nats" else 100

    def height(record: TrialRecord) -> float:
        value = record.estimate if record.value is None else record.value
        return factor * (value or 0.0)

    def dots(records: Sequence[TrialRecord], label: str, **style: Any) -> None:
        if records:
            numbers = [record.number for record in records]
            axes.scatter(numbers, list(map(height, records)), label=label, **{"s": 14, **style})

    scored = [record for record in report.records if record.value is not None]
    pruned = [record for record in report.records if record.pruned is not None]
    steps = [record for record in report.records if record.state == "step"]
    plain = [record for record in scored if record.baseline is not None]
    dots([record for record in scored if record.baseline is None], "trial", color="tab:blue")
    dots(plain, "baseline", color="tab:orange")
    dots(pruned, "pruned, estimate", marker="x", linewidth=0.8, color="tab:gray")
    dots(steps, "gradient step, estimate", marker=".", s=10, color="tab:purple")
    doubted = [record for record in scored if report.warnings(record)]
    dots(doubted, "in doubt (evomerge status says why)", s=18, marker="+", color="tab:red")
    broken = [record for record in scored if not record.feasible]
    dots(broken, "breaks a constraint", marker="x", linewidth=0.8, color="tab:red")
    kept = [record for record in scored if record.feasible]
    best = list(accumulate(map(height, kept), max))
    numbers = [record.number for record in kept]
    axes.step(numbers, best, where="post", color="tab:green", label="best so far")
    if plain:
        top = max(plain, key=height)
        axes.axhline(height(top), color="tab:orange", linestyle=":")
        axes.annotate(
            f"best baseline: {top.name}",
            (0.99, height(top)),
            xycoords=("axes fraction", "data"),
            ha="right",
            annotation_clip=True,
            va="bottom",
        )
    if report.plateau is not None:
        axes.axvspan(
            report.plateau.since, numbers[-1], color="tab:gray", alpha=0.15, label="plateau"
        )
    axes.set(
        xlabel="trial",
        ylabel=f"{UNIT_NAMES[unit]} on the search documents",
        title="Scores over trials",
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, frameon=False)
    if report.goal.kind != "metric":
        _cut_off_the_hopeless(axes, [height(record) for record in (*scored, *pruned, *steps)])


def _cut_off_the_hopeless(axes: Any, values: Sequence[float]) -> None:
    """Log-probabilities have no floor: a few bad merges would flatten all others into a line."""
    ordered = sorted(values)
    best, middle = ordered[-1], ordered[len(ordered) // 2]
    bottom = best - 4 * (best - middle)
    below = sum(value < bottom for value in ordered)
    if below and bottom < best:
        axes.set_ylim(bottom, best + (best - bottom) / 10)
        axes.text(0.01, 0.03, f"{below} below", transform=axes.transAxes)


def _draw_weights(figure: Figure, axes: Any, report: RunReport) -> None:
    winner = report.ranked[0].number if report.verdict is None else report.verdict.winner
    winner = winner if report.knee is None else report.knee.number
    axes.set_title(f"What {report.by_number[winner].name} took from whom")
    if report.by_number[winner].recipe.stack is not None:
        _draw_stack(axes, report.by_number[winner].recipe)
        return
    frame = report.coefficients(winner)
    name = "weight" if "weight" in frame else "scale"
    table = frame.pivot_table(index="source", columns="group", values=name, sort=False)
    values = table.to_numpy(dtype=float)
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(table.columns)), table.columns, rotation=45, ha="right")
    axes.set_yticks(range(len(table.index)), table.index)
    for row in range(len(table.index)):
        for column in range(len(table.columns)):
            text = f"{values[row, column]:.2f}"
            axes.text(column, row, text, ha="center", va="center", color="white")
    figure.colorbar(image, ax=axes, label=name)


def _draw_stack(axes: Any, recipe: Recipe) -> None:
    """Which layer of which source stands at which place; the larger the louder."""
    steps = [(p.source, layer, p.scale) for p in recipe.stack or () for layer in p.layers]
    for source in dict.fromkeys(source for source, *_ in steps):
        own = [(n, layer, scale) for n, (s, layer, scale) in enumerate(steps) if s == source]
        places, layers, scales = zip(*own, strict=True)
        axes.scatter(places, layers, s=[60 * abs(scale) for scale in scales], label=source)
    axes.set(xlabel="layer of the result", ylabel="layer taken")
    axes.legend()


def _draw_holdout(axes: Any, report: RunReport) -> None:
    axes.set_title("Holdout documents")
    if not report.holdout:
        axes.text(0.5, 0.5, "not scored yet", ha="center", va="center")
        axes.set_axis_off()
        return
    ordered = sorted(report.holdout.items(), key=lambda item: report.goal.points.value(item[1]))
    names = [
        record.name + (" (in doubt)" if report.warnings(record) else "")
        for record in (report.by_number[number] for number, _ in ordered)
    ]
    values = [100 * report.goal.points.value(metrics) for _, metrics in ordered]
    winner = None if report.verdict is None else report.verdict.winner
    colours = ["tab:green" if number == winner else "tab:gray" for number, _ in ordered]
    bars = axes.barh(names, values, color=colours)
    axes.bar_label(bars, fmt="%.1f", padding=2, fontsize="small")
    axes.tick_params(axis="y", labelsize="small")
    axes.set(
        xlabel=UNIT_NAMES[report.goal.points.unit],
        xlim=(1.15 * min(0.0, *values), 1.15 * max(0.0, *values)),
    )
    if report.verdict is not None:
        place = [number for number, _ in ordered].index(report.verdict.winner)
        _draw_verdict(axes, report, report.verdict, place)


def _draw_verdict(axes: Any, report: RunReport, verdict: Verdict, place: int) -> None:
    """The conclusion and the gain in the title, and its interval across the winner's bar, counted
    from the best baseline's end; place: of that bar."""
    axes.set_title(f"Holdout documents: {verdict.conclusion}")
    low, high = verdict.gain.low, verdict.gain.high
    if verdict.winner == verdict.opponent or low is None or high is None:
        return
    name = report.by_number[verdict.opponent].name
    axes.set_title(
        f"Holdout documents: {verdict.conclusion}\n{verdict.gain.sentence()}\nover {name}",
        fontsize="medium",
    )
    rival = 100 * report.goal.points.value(report.holdout[verdict.opponent])
    axes.plot([rival + 100 * low, rival + 100 * high], [place, place], color="black", marker="|")
    axes.axvline(rival, color="black", linestyle=":", linewidth=0.8)

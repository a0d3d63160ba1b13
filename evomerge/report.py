"""A run as frames and figures, read from its folder alone; reading disturbs no search."""

import fcntl
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import mean, median
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from evomerge.errors import UserError
from evomerge.front_picture import draw_front
from evomerge.recipe import Recipe
from evomerge.scoring.answers import SHARES, Answers
from evomerge.scoring.scorecard import Metric, from_json
from evomerge.searching.finalists import (
    holdout_answers,
    holdout_metrics,
    read_verdict,
    score_warnings,
)
from evomerge.searching.front import knee_of, pareto_front
from evomerge.searching.front_verdict import FrontVerdict, read_front
from evomerge.searching.guidance import GUIDANCE
from evomerge.searching.holdout_limits import HeldLimit, read_limits
from evomerge.searching.objective import UNIT_NAMES, Goal
from evomerge.searching.plateau import PLATEAU, Plateau, read_plateau
from evomerge.searching.ranking import rank
from evomerge.searching.record import TrialRecord, base_of, read_trials
from evomerge.searching.references import REFERENCES
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.study import OBJECTIVE, TASKS, find_study, read_goal
from evomerge.searching.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What a run's folder tells."""

    folder: Path
    records: tuple[TrialRecord, ...]
    goal: Goal
    holdout: Mapping[int, Mapping[str, Metric]]
    """Trial number -> task -> its metric on the holdout documents."""
    holdout_answers: Mapping[int, Answers]
    """Trial number -> task -> how its answers to the holdout documents ended."""
    verdict: Verdict | None
    plateau: Plateau | None
    """The one that the search is on, or was at its end."""
    front_verdict: FrontVerdict | None
    """What takes its place with several objectives."""
    limits: Sequence[HeldLimit]
    """How the winner, or every member of the front, keeps the constraints on the holdout."""
    scale_notes: Sequence[str]
    """Where a metric's scale is not the best source's gain, in words."""
    tasks: Mapping[str, Any]
    """Task -> how it is asked."""
    guidance: Mapping[str, Any] | None
    """`start`: the trial where steps along the gradient began; `end`: why they ended. None: there
    are none."""
    running: bool

    @property
    def by_number(self) -> dict[int, TrialRecord]:
        """Trial number -> record."""
        return {record.number: record for record in self.records}

    @property
    def ranked(self) -> list[TrialRecord]:
        """Trials of distinct weights scored in full, best on the search documents first."""
        return rank(self.records, self.goal)

    @property
    def front(self) -> list[TrialRecord]:
        """Of several objectives: the Pareto front on the search documents."""
        return pareto_front(self.records, self.goal)[0] if self.goal.several else []

    @property
    def knee(self) -> TrialRecord | None:
        """The front's knee; None where there is no front."""
        if not self.goal.several:
            return None
        front, values = pareto_front(self.records, self.goal)
        return knee_of(front, values) if front else None

    def warnings(self, record: TrialRecord) -> list[str]:
        """Why a trial's scores are in doubt; nothing where they are not."""
        return score_warnings(record, base_of(self.records), self.holdout_answers)

    def counts(self) -> dict[str, int]:
        """State -> number of trials."""
        return dict(Counter(record.state for record in self.records))

    def pruned(self) -> dict[str, int]:
        """Reason (race, halving) -> number of trials given up for it."""
        return dict(Counter(record.pruned for record in self.records if record.pruned is not None))

    def share(self) -> float | None:
        """Mean share of the search documents that was scored per trial, baselines aside."""
        own = [r.share for r in self.records if r.baseline is None and r.share is not None]
        return mean(own) if own else None

    def documents(self) -> dict[str, dict[str, int]]:
        """Side of the split -> kind -> how many documents were scored, of all trials together.

        Kinds: metric (answers generated where the task wants them), smooth (references read).
        """
        search: Counter[str] = Counter()
        for record in self.records:
            search.update(record.documents)
        holdout = sum(m.documents for scored in self.holdout.values() for m in scored.values())
        return {
            "search": dict(search),
            "holdout": dict.fromkeys(sorted(self.goal.holdout_kinds), holdout),
        }

    def state(self) -> str:
        """running, finished, or stopped."""
        if self.running:
            return "running"
        ended = self.verdict is not None or self.front_verdict is not None
        return "finished" if ended else "stopped, the same command goes on"

    def median_seconds(self) -> dict[str, float]:
        """Phase -> median seconds over scored trials."""
        phases: dict[str, list[float]] = {}
        for record in self.records:
            for phase, spent in record.seconds.items():
                phases.setdefault(phase, []).append(spent)
        return {phase: median(spent) for phase, spent in phases.items()}

    def trials(self) -> pd.DataFrame:
        """One row per trial: number, name, baseline, state, value (what is climbed), whether it is
        feasible (keeps the constraints), estimate and why it was pruned, steps along the gradient
        before it, points, task metrics on search and holdout documents (`capital`, `capital
        holdout`; of a pruned trial none), shares of its answers to the search documents (`capital
        cut_off`, `capital empty`, ...), documents scored by kind, seconds by phase, failure,
        warnings; of several objectives the `NAME value` of each.
        """
        rows = []
        for record in self.records:
            row: dict[str, Any] = {
                "number": record.number,
                "name": record.name,
                "baseline": record.baseline,
                "state": record.state,
                "value": record.value,
                "feasible": record.feasible,
                "estimate": record.estimate,
                "pruned": record.pruned,
                "step": record.step,
                "points": self.points(record),
            }
            if self.goal.several and record.values:
                row |= dict(zip(self._value_columns(), record.values, strict=True))
            full = () if record.value is None else record.metrics
            chosen = {(m.task, m.name): m.value for m in full}
            for task, target in self.goal.points.targets.items():
                row[task] = chosen.get((task, target.metric))
                held = self.holdout.get(record.number, {}).get(task)
                row[f"{task} holdout"] = None if held is None else held.value
                if (answers := record.answers.get(task)) is not None:
                    row |= {f"{task} {share}": getattr(answers, share) for share in SHARES}
            row |= {f"{kind} documents": count for kind, count in record.documents.items()}
            row |= {f"{phase} seconds": spent for phase, spent in record.seconds.items()}
            doubts = "; ".join(self.warnings(record))
            rows.append({**row, "failure": record.failure, "warnings": doubts})
        return pd.DataFrame(rows).set_index("number")

    def _value_columns(self) -> list[str]:
        return [f"{name} value" for name in self.goal.parts]

    def points(self, record: TrialRecord) -> float | None:
        """The tasks' own metrics on all search documents; None where they were not scored."""
        return None if record.value is None else self.goal.points.value_of(record.metrics)

    def coefficients(self, number: int) -> pd.DataFrame:
        """One row per rule and source of a trial's recipe: group, method, source, parameters."""
        rows = []
        for rule in self.by_number[number].recipe.rules:
            for source in rule.sources:
                values = {
                    name: value[source] if isinstance(value, dict) else value
                    for name, value in rule.parameters.items()
                }
                rows.append(
                    {"group": rule.label(), "method": rule.method, "source": source, **values}
                )
        return pd.DataFrame(rows)


def read_run(run: Path | str, storage: str | None = None) -> RunReport:
    """Reads a run folder; UserError if it holds no run."""
    folder = RunFolder(Path(run))
    study = find_study(folder.storage_of_run(storage))
    if study is None or OBJECTIVE not in study.user_attrs:
        raise UserError(f"{run}: holds no search that began")
    attributes = study.user_attrs
    goal = read_goal(attributes)
    holdout = {}
    for number, rows in holdout_metrics(attributes).items():
        if (metrics := goal.points.found(from_json(rows))) is not None:
            holdout[number] = metrics
    return RunReport(
        folder=folder.path,
        records=tuple(read_trials(study)),
        goal=goal,
        holdout=holdout,
        holdout_answers=holdout_answers(attributes),
        verdict=read_verdict(attributes),
        plateau=read_plateau(attributes.get(PLATEAU)),
        guidance=attributes.get(GUIDANCE),
        front_verdict=read_front(attributes),
        limits=read_limits(attributes),
        scale_notes=attributes.get(REFERENCES, {}).get("notes", ()),
        tasks=attributes[TASKS],
        running=_locked(folder.path / "lock"),
    )


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


def _locked(lock: Path) -> bool:
    """Whether a process holds the run's lock."""
    try:
        with lock.open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False

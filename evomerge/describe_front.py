"""A run with several objectives, in words and tables for a terminal."""

from evomerge.aligned import align
from evomerge.report import RunReport


def front_table(report: RunReport) -> str:
    """Finalists and baselines on the holdout documents, and on those of the search."""
    goal = report.goal
    parts = goal.split(goal.points)
    front = {record.number for record in report.front}
    knee = report.knee
    names = list(parts)
    alone = {task for part in parts.values() if len(part.targets) == 1 for task in part.targets}
    tasks = [task for task in goal.points.targets if task not in alone]
    rows = [["", "candidate", *names, *tasks, *(f"search {name}" for name in names)]]
    for number, scored in sorted(
        report.holdout.items(), key=lambda item: -next(iter(parts.values())).value(item[1])
    ):
        record = report.by_number[number]
        mark = "k" if knee is not None and knee.number == number else ""
        mark = mark or ("*" if number in front else "")
        searched = goal.values(goal.points, record.metrics)
        rows.append(
            [
                mark + ("!" if report.warnings(record) else ""),
                record.name,
                *(f"{100 * part.value(scored):.1f}" for part in parts.values()),
                *(f"{100 * scored[task].value:.1f}" for task in tasks),
                *([""] * len(names) if searched is None else [f"{100 * v:.1f}" for v in searched]),
            ]
        )
    return align(rows)


def front_lines(report: RunReport) -> list[str]:
    """The front on the search documents and, at a run's end, what the holdout says of it."""
    goal, knee = report.goal, report.knee
    lines = [f"front on the search documents (* above; k: its knee), {len(report.front)} trials:"]
    for record in report.front:
        mark = "k" if knee is not None and knee.number == record.number else "*"
        lines.append(f"{mark} {record.name:24} {goal.text(0.0, record.metrics, digits=2)}")
    if report.front_verdict is not None:
        names = {record.number: record.name for record in report.records}
        lines += ["", *report.front_verdict.sentences(names)]
        lines += [f"{names[limit.trial]}: {limit.sentence()}" for limit in report.limits]
    return lines

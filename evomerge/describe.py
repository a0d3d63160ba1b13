"""What the verbs found out, in words and tables for a terminal."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from evomerge.aligned import align
from evomerge.describe_front import front_lines, front_table
from evomerge.errors import UserError
from evomerge.inspection import Inspection
from evomerge.merging.models import Models
from evomerge.model_card import SAMPLES, lm_eval_commands, score_command
from evomerge.notify import describe_target
from evomerge.report import RunReport, read_run, readable
from evomerge.scoring.answers import Answers, warnings
from evomerge.scoring.scorecard import Scorecard
from evomerge.searching.objective import UNIT_NAMES
from evomerge.searching.record import TrialRecord
from evomerge.searching.study import published_sentence

if TYPE_CHECKING:
    from evomerge.checking import Check
    from evomerge.ending import Outcome


def describe_check(found: "Check") -> str:
    """Models, groups, documents, memory, sampler, forecast."""
    bench = found.bench
    layout = bench.models.layout
    lines = [f"base     {bench.template.base.path}"]
    lines += [f"source   {name}: {model.path}" for name, model in bench.template.sources.items()]
    lines += [
        f"tensors  {len(layout.slots)} to merge, {len(layout.aliases)} tied, {bench.template.dtype}"
    ]
    lines += _vocabulary(bench.models)
    for task, split in bench.splits.items():
        target = bench.goal.points.targets[task]
        lines.append(
            f"task     {task}: {target.metric}, weight {target.weight:g}, "
            f"{len(split.search)} search and {len(split.holdout)} holdout documents"
        )
    lines += [
        f"climbs   {bench.goal.kind}: {bench.goal.reason}",
        *(f"front    {name}: {', '.join(tasks)}" for name, tasks in bench.goal.parts.items()),
        f"scale    {bench.goal.normalise}: {bench.goal.normalise_reason}",
        *(f"limit    {constraint.sentence()}" for constraint in bench.goal.constraints),
        f"stopping {bench.stopping()}",
        f"space    {found.parameters} parameters; {bench.space.describe()}",
        f"sampler  {found.sampler[0]}: {found.sampler[1]}",
        f"memory   {bench.memory.sentence()}",
        f"merging  {bench.pass_reason}",
    ]
    lines += [f"         {each.sentence()}" for each in found.throughput]
    if found.seconds_of_merge is not None:
        lines.append(f"         a candidate of the whole model takes {_candidate_seconds(found)}")
    if found.base is not None:
        given = "as configured" if bench.loaded.config.batch_tokens else "found by a probe"
        lines.append(f"scoring  {bench.budget.tokens} tokens in a forward pass, {given}")
        lines += [f"         {remark}" for remark in found.base.remarks]
        lines += [f"answers  {line}" for line in _answers(found.base.answers, "the base, ")]
    if found.seconds_per_trial is not None:
        count = found.forecast()
        seconds = found.seconds_per_trial
        lines.append(
            f"time     about {seconds:.2g} s per trial"
            + ("" if count is None else f": {count} trials in about {_duration(count * seconds)}")
        )
    if found.power is not None:
        lines.append(f"shows    {found.power.sentence()}")
    if (notify := bench.loaded.config.notify) is not None:
        lines.append(f"notify   {describe_target(notify)}, when the search ends or fails")
    if public := found.published:
        lines.append(f"note     {published_sentence(public)}")
    if found.base is not None:
        lines += [f"warning  {line}" for line in warnings(found.base.answers, None)]
    if found.power is not None and (doubt := found.power.warning()) is not None:
        lines.append(f"warning  {doubt}")
    return "\n".join(lines)


def _answers(answers: Answers, whose: str = "") -> list[str]:
    return [f"{whose}{task}: {health.sentence()}" for task, health in answers.items()]


def _vocabulary(models: Models) -> list[str]:
    """Which tokens candidates have, in how many rows, and what the sources' differ in."""
    found = models.vocabularies
    if found is None or not models.layout.vocabulary:
        return []
    rows = models.layout.slots[models.layout.vocabulary[0]].shape[0]
    padding = f", {rows - len(found.result)} rows of padding" if rows > len(found.result) else ""
    return [
        f"tokens   {len(found.result)}, vocabulary: {found.wanted}{padding}",
        *(f"         {n}: {each.sentence()}" for n, each in found.differences().items()),
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _candidate_seconds(found: "Check") -> str:
    measured = f"{found.seconds_of_merge:.2g} s as measured with task_arithmetic"
    if (seconds := found.seconds_per_candidate()) is None:
        return measured
    kept = "" if found.bench.memory.placement == "device" else ", if the operands were in memory"
    return f"about {seconds:.2g} s at that rate{kept}; {measured}"


def describe_outcome(outcome: "Outcome") -> str:
    """The verdict, or how to go on."""
    if outcome.stopped:
        return f"stopped; the same command goes on. So far: evomerge status {outcome.folder}"
    text = describe_run(outcome.folder, outcome.storage)
    choice = "" if outcome.front is None else " --knee   (or --trial N, of the front)"
    return f"{text}\nexport it: evomerge export {outcome.folder} OUT{choice}"


def describe_run(run: Path, storage: str | None = None) -> str:
    """As `describe_report`, of a run folder."""
    report = read_run(run, storage)
    with readable(run):
        return describe_report(report)


def describe_report(report: RunReport) -> str:
    """State, leaderboard of the holdout, where the time went, the verdict."""
    counts = report.counts()
    lines = [
        f"{report.folder}: {report.state()}, "
        + ", ".join(f"{count} {state}" for state, count in counts.items())
    ]
    lines += _economy(report)
    lines += _limits(report)
    if report.holdout:
        unit = report.goal.points.unit
        scale = "" if unit == "points" else f", mean in {UNIT_NAMES[unit]}"
        table = front_table(report) if report.goal.several else _table(report)
        lines += ["", f"holdout documents, in points (percent){scale}:", "", table]
        lines += _doubts(report, [r for r in report.records if r.number in report.holdout])
    elif report.ranked:
        lines += ["", "search documents:", ""]
        best = report.ranked[:10]
        lines += [
            f"{'!' if report.warnings(r) else ' '} {r.name:24} "
            f"{report.goal.text(r.value or 0.0, r.metrics, digits=2)}"
            for r in best
        ]
        lines += _doubts(report, best)
    if seconds := report.median_seconds():
        lines += ["", "median seconds per trial: "]
        lines[-1] += ", ".join(f"{phase} {spent:.3f}" for phase, spent in seconds.items())
    remarks = Counter(remark for record in report.records for remark in record.remarks)
    lines += [f"of {count} trials: {remark}" for remark, count in remarks.most_common(5)]
    for record in [record for record in report.records if record.failure][:5]:
        lines.append(f"failed: {record.name}: {record.failure}")
    if report.plateau is not None:
        lines += ["", report.plateau.sentence()]
    if report.front:
        lines += ["", *front_lines(report)]
    if report.verdict is not None:
        names = {record.number: record.name for record in report.records}
        lines += ["", *report.verdict.lines(names)]
        lines += [limit.sentence() for limit in report.limits]
        if doubts := report.warnings(report.by_number[report.verdict.winner]):
            lines += ["But the winner's score is in doubt:", *(f"  {doubt}" for doubt in doubts)]
    return "\n".join(lines)


def _economy(report: RunReport) -> list[str]:
    """What guidance and early stopping did, and how many documents were scored."""
    lines = []
    steps = [record for record in report.records if record.state == "step"]
    if report.guidance is not None:
        ended = report.guidance.get("end", "under way")
        lines.append(f"guidance: {len(steps)} steps along the gradient; {ended}")
    if pruned := report.pruned():
        reasons = ", ".join(f"{count} by {reason}" for reason, count in sorted(pruned.items()))
        share = report.share()
        scored = "" if share is None else f", {100 * share:.0f} % of documents scored per trial"
        lines.append(f"early stopping: {sum(pruned.values())} pruned ({reasons}){scored}")
    counts = [
        f"{count} {side} {kind}"
        for side, kinds in report.documents().items()
        for kind, count in kinds.items()
        if count
    ]
    return [*lines, f"documents scored: {', '.join(counts)}"] if counts else lines


def _limits(report: RunReport) -> list[str]:
    """The constraints, how many trials break them, and what 100 % of the gain is not."""
    lines = [f"scale of {note}" for note in report.scale_notes]
    if constraints := report.goal.constraints:
        scored = [record for record in report.records if record.value is not None]
        broken = sum(not record.feasible for record in scored)
        limits = "; ".join(constraint.sentence() for constraint in constraints)
        lines.append(f"constraints: {limits}; broken by {broken} of {len(scored)} trials")
        if scored and broken == len(scored):
            lines.append("no trial keeps the constraints yet, so none can win")
    return lines


def _doubts(report: RunReport, records: Sequence[TrialRecord]) -> list[str]:
    """The warnings of those that are marked in the table above, equal ones once."""
    found: dict[str, list[str]] = {}
    for record in records:
        if doubts := report.warnings(record):
            found.setdefault("; ".join(doubts), []).append(record.name)
    lines = [f"! {', '.join(names)}: {doubts}" for doubts, names in found.items()]
    return ["", "! scores in doubt:", *lines] if lines else []


def describe_lm_eval(run: Path, trial: int) -> str:
    """The commands that score a trial again, to be run after its export: stock lm-eval's, and
    `evomerge score` for tasks that it does not know."""
    report = read_run(run)
    with readable(run):
        if trial not in {record.number for record in report.ranked}:
            raise UserError(f"trial {trial} has no scores")
        lines = [
            f"evomerge export {run} OUT --trial {trial}",
            *lm_eval_commands("OUT", report.tasks, f"OUT/{SAMPLES}"),
        ]
        if command := score_command("OUT", report.tasks):
            lines.append(f"{command}   # tasks that stock lm-eval does not know")
    return "\n".join(lines)


def describe_scores(scorecard: Scorecard) -> str:
    """One line per metric; how generated answers ended; why the scores are in doubt."""
    rows = [["task", "metric", "value", "standard error", "documents"]]
    for metric in scorecard.metrics:
        error = "" if metric.standard_error is None else f"{metric.standard_error:.4f}"
        value = f"{metric.value:.4f}"
        rows.append([metric.task, metric.name, value, error, str(metric.documents)])
    doubts = [f"warning: {line}" for line in warnings(scorecard.answers, None)]
    return "\n".join([align(rows), *_answers(scorecard.answers, "answers to "), *doubts])


def _table(report: RunReport) -> str:
    """Candidates by holdout score; the winner is starred, and a score in doubt has a `!`."""
    objective = report.goal.points
    tasks = list(objective.targets)
    smooth = report.goal.kind != "metric"
    unit = "nats" if report.goal.climbed.unit == "nats" else "smooth"
    rows = [["", "candidate", "mean", *tasks, "search mean", *([f"search {unit}"] * smooth)]]
    for number, scored in sorted(
        report.holdout.items(), key=lambda item: -objective.value(item[1])
    ):
        record = report.by_number[number]
        points = report.points(record)
        star = "*" if report.verdict is not None and number == report.verdict.winner else ""
        star += "!" if report.warnings(record) else ""
        rows.append(
            [
                star,
                record.name,
                f"{100 * objective.value(scored):.1f}",
                *(f"{100 * scored[task].value:.1f}" for task in tasks),
                "" if points is None else f"{100 * points:.1f}",
                *([_climbed(report, record)] * smooth),
            ]
        )
    return align(rows)


def _climbed(report: RunReport, record: TrialRecord) -> str:
    value = record.estimate if record.value is None else record.value
    if value is None:
        return ""
    about = "~" if record.value is None else ""
    return (
        f"{about}{value:.3f}" if report.goal.climbed.unit == "nats" else f"{about}{100 * value:.1f}"
    )


def describe_inspection(found: Inspection, *, full: bool = False) -> str:
    """Problems, or a table of task vectors per layer."""
    if found.problems:
        return "\n".join(["these cannot be merged:", *(f"- {each}" for each in found.problems)])
    lines = [
        "these can be merged. Per layer: size of each task vector beside the base's weights, mean",
        "cosine between task vectors, share of entries with opposed signs, mean rank of matrices",
        "",
        _rows(found.table(full=full)),
    ]
    if full and len(found.pairs):
        lines += ["", "cosine between task vectors, pair by pair", "", _rows(found.cosines())]
    return "\n".join([*lines, *(["", *found.remarks] if found.remarks else [])])


def _rows(table: pd.DataFrame) -> str:
    """A table by layer, in figures."""
    rows = [list(table.columns)]
    for record in table.to_dict("records"):
        layer = int(record.pop("layer"))
        cells = ["ends" if layer < 0 else str(layer)]
        cells += ["" if value != value else _figure(value) for value in record.values()]
        rows.append(cells)
    return align(rows)


def _figure(value: object) -> str:
    return value if isinstance(value, str) else f"{value:.3f}"

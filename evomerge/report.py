"""A run as frames and figures, read from its folder alone; reading disturbs no search."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import pandas as pd

from evomerge.errors import UserError
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
from evomerge.searching.objective import Goal
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
    return report_of(folder.path, study.user_attrs, read_trials(study))


def report_of(
    folder: Path, attributes: Mapping[str, Any], records: Sequence[TrialRecord]
) -> RunReport:
    """What a run's study tells, from its attributes and the records of its trials."""
    goal = read_goal(attributes)
    holdout = {}
    for number, rows in holdout_metrics(attributes).items():
        if (metrics := goal.points.found(from_json(rows))) is not None:
            holdout[number] = metrics
    return RunReport(
        folder=folder,
        records=tuple(records),
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
        running=RunFolder(folder).locked(),
    )

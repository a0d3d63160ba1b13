"""A run as frames and figures, read from its folder alone; reading disturbs no search."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import pandas as pd

from evomerge.errors import EvomergeError, UserError
from evomerge.frames import coefficients_frame, parameters_frame, scores_frame, trials_frame
from evomerge.scoring.answers import Answers
from evomerge.scoring.scorecard import Metric, from_json
from evomerge.searching.ending import Ended, read_end
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
from evomerge.searching.presence import at_work
from evomerge.searching.ranking import rank
from evomerge.searching.record import TrialRecord, base_of, read_trials
from evomerge.searching.references import REFERENCES
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.study import OBJECTIVE, TASKS, find_study, read_goal
from evomerge.searching.verdict import Verdict

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What a run's folder tells."""

    folder: Path
    records: tuple[TrialRecord, ...]
    goal: Goal
    holdout: Mapping[int, Mapping[str, Metric]]
    """Trial number -> task -> its metric on the holdout documents."""
    holdout_scores: Mapping[int, Sequence[Metric]]
    """Trial number -> all that was scored on the holdout documents."""
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
    ended: Ended | None
    """How its last start ended; None while it runs, and after a kill."""

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
        """running, finished, stopped, failed, or interrupted by a kill."""
        if self.running:
            return "running"
        if self.ended is None:
            return "interrupted, the same command goes on"
        if self.ended.state == "failed":
            return f"failed: {self.ended.because}"
        stopped = self.ended.state == "stopped"
        return "stopped, the same command goes on" if stopped else "finished"

    def median_seconds(self) -> dict[str, float]:
        """Phase -> median seconds over scored trials."""
        phases: dict[str, list[float]] = {}
        for record in self.records:
            for phase, spent in record.seconds.items():
                phases.setdefault(phase, []).append(spent)
        return {phase: median(spent) for phase, spent in phases.items()}

    def points(self, record: TrialRecord) -> float | None:
        """The tasks' own metrics on all search documents; None where they were not scored."""
        return None if record.value is None else self.goal.points.value_of(record.metrics)

    def trials(self) -> pd.DataFrame:
        """One row per trial."""
        with readable(self.folder):
            return trials_frame(self)

    def scores(self) -> pd.DataFrame:
        """One row per trial, side of the split, task and metric."""
        with readable(self.folder):
            return scores_frame(self)

    def parameters(self) -> pd.DataFrame:
        """One row per trial, one column per parameter of the space."""
        with readable(self.folder):
            return parameters_frame(self)

    def coefficients(self, number: int) -> pd.DataFrame:
        """One row per rule and source of a trial's recipe."""
        with readable(self.folder):
            return coefficients_frame(self, number)


def read_run(run: Path | str, storage: str | None = None) -> RunReport:
    """Reads a run folder; UserError if it holds no run."""
    folder = RunFolder(Path(run))
    with readable(run), closing(folder):
        study = find_study(folder.storage_of_run(storage))
        if study is None or OBJECTIVE not in study.user_attrs:
            raise UserError(f"{run}: holds no search that began")
        return report_of(folder, study.user_attrs, read_trials(study))


@contextmanager
def readable(run: Path | str) -> Iterator[None]:
    """Around what reads a run: UserError where values in it are not what this version writes."""
    try:
        yield
    except EvomergeError:
        raise
    except Exception as error:  # of Optuna, and of whoever meets a text where a number should be
        log.debug("%s", run, exc_info=error)
        raise UserError(
            f"{run}: its study cannot be read ({type(error).__name__}: {str(error)[:500]}); "
            "expected what evomerge search writes: it is damaged, or of another version"
        ) from error


def report_of(
    folder: RunFolder, attributes: Mapping[str, Any], records: Sequence[TrialRecord]
) -> RunReport:
    """What a run's study tells, from its attributes and the records of its trials."""
    goal = read_goal(attributes)
    verdict, front_verdict = read_verdict(attributes), read_front(attributes)
    held = {number: from_json(rows) for number, rows in holdout_metrics(attributes).items()}
    found = {number: goal.points.found(metrics) for number, metrics in held.items()}
    return RunReport(
        folder=folder.path,
        records=tuple(records),
        goal=goal,
        holdout={n: metrics for n, metrics in found.items() if metrics is not None},
        holdout_scores=held,
        holdout_answers=holdout_answers(attributes),
        verdict=verdict,
        plateau=read_plateau(attributes.get(PLATEAU)),
        guidance=attributes.get(GUIDANCE),
        front_verdict=front_verdict,
        limits=read_limits(attributes),
        scale_notes=attributes.get(REFERENCES, {}).get("notes", ()),
        tasks=attributes[TASKS],
        running=at_work(folder),
        ended=read_end(attributes, judged=bool(verdict or front_verdict)),
    )

"""One process's part in a run: what it works with, and what it says of how the run goes."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
import torch

from evomerge.assemble import Bench
from evomerge.searching.finalists import HOLDOUT, score_warnings
from evomerge.searching.loop import Budget
from evomerge.searching.objective import Goal
from evomerge.searching.plateau import PLATEAU, PlateauWatch
from evomerge.searching.presence import FolderPresence, Presence, StudyPresence
from evomerge.searching.progress import Progress, outcome_text
from evomerge.searching.record import POINTS, TrialRecord, base_of, read_trials
from evomerge.searching.references import REFERENCES, with_references
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.sent_files import fetch_from
from evomerge.searching.study import HISTORY

log = logging.getLogger(__name__)

OnProgress = Callable[[Progress, TrialRecord | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a process works with while it takes part in a run."""

    bench: Bench
    study: optuna.Study
    folder: RunFolder
    presence: Presence
    budget: Budget
    storage: str | None
    """URL of the study; None: it is in the folder."""

    def goal(self) -> Goal:
        """With the scales and limits that follow from base and sources, once these are scored."""
        return with_references(self.bench.goal, self.study.user_attrs.get(REFERENCES))

    def collect(self, record: TrialRecord) -> None:
        """Brings a trial's files here, where a worker that shares no folder has them."""
        if self.folder.fetch is not None and (record.value, record.estimate) != (None, None):
            self.folder.scores("search", record.number)


@contextmanager
def session(
    bench: Bench,
    study: optuna.Study,
    folder: RunFolder,
    budget: Budget,
    storage: str | None,
    label: str | None = None,
) -> Iterator[Session]:
    """Present among the workers until the block ends. label: how this worker is called."""
    presence: Presence
    if storage is None:
        presence = FolderPresence(folder, label)
    else:
        presence = StudyPresence(study._storage, label)
        fetch_from(study, folder, {"search": POINTS, "holdout": HOLDOUT})
    try:
        yield Session(
            bench=bench,
            study=study,
            folder=folder,
            presence=presence,
            budget=budget,
            storage=storage,
        )
    finally:
        presence.leave()


def budget_of_run(study: optuna.Study) -> Budget:
    """The budget of the run's last start."""
    facts: dict[str, Any] = study.user_attrs[HISTORY][-1]["budget"]
    deadline = facts["deadline"] and datetime.fromisoformat(facts["deadline"])
    # As this machine's clock shows it, whatever its time zone.
    local = deadline and deadline.astimezone().replace(tzinfo=None)
    return Budget(trials=facts["trials"], documents=facts["documents"], deadline=local)


@dataclass(slots=True)
class Follower:
    """Says how the run goes, trial by trial: log, progress, plateau. One process of a run has it:
    the one that the user looks at, or that leads."""

    session: Session
    on_progress: OnProgress
    devices: tuple[torch.device, ...] = ()
    """Of this process, whose memory is shown."""
    progress: Progress = field(init=False)
    _watch: PlateauWatch = field(init=False)
    _base: TrialRecord | None = field(init=False)

    def __post_init__(self) -> None:
        study, goal = self.session.study, self.session.goal()
        known = read_trials(study)
        self.progress = Progress(budget=self.session.budget, goal=goal, devices=self.devices)
        for record in known:
            self.progress.add(record, earlier=True)
        self._base = base_of(known)
        stored = study.user_attrs.get(PLATEAU)
        self._watch = PlateauWatch(self.session.folder, goal, known, stored)
        self.progress.plateau = self._watch.plateau
        self.on_progress(self.progress, None)

    def __call__(self, record: TrialRecord) -> None:
        """A trial has ended."""
        progress, watch = self.progress, self._watch
        if not progress.goal.settled:
            progress.goal = watch.goal = self.session.goal()
        self._base = self._base or base_of([record])
        self.session.collect(record)
        progress.add(record)
        if watch.add(record):
            self._tell_plateau()
        progress.plateau = watch.plateau
        outcome = outcome_text(record, progress.goal)
        log.info("%s (number %d): %s", record.name, record.number, outcome)
        if doubts := score_warnings(record, self._base, {}):
            log.warning("%s: its score is in doubt: %s", record.name, "; ".join(doubts))
        self.on_progress(progress, record)

    def keep_plateau(self) -> None:
        """In the study, as of now."""
        self.session.study.set_user_attr(PLATEAU, self._watch.to_json())

    def _tell_plateau(self) -> None:
        """Says, and keeps, that the search came onto a plateau, or left one."""
        self.keep_plateau()
        plateau = self._watch.plateau
        left = "the plateau is left: candidates differ by more than noise again"
        log.info("%s", left if plateau is None else plateau.sentence())


def on_plateau(study: optuna.Study) -> bool:
    """Whether the follower found the search to be on a plateau."""
    return study.user_attrs.get(PLATEAU) is not None

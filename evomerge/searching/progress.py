"""How far a search is: one line for a log, and the figures for a view of it."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import mean

import torch

from evomerge.searching.constraints import broken_text
from evomerge.searching.front import front_of
from evomerge.searching.loop import Budget
from evomerge.searching.objective import Goal, amount
from evomerge.searching.plateau import Plateau
from evomerge.searching.record import DONE, TrialRecord

_RECENT = 6


@dataclass(slots=True, kw_only=True)
class Progress:
    """Counts finished trials."""

    budget: Budget
    goal: Goal
    done: int = 0
    documents: int = 0
    """Search documents scored for them, of all kinds."""
    failed: int = 0
    pruned: int = 0
    steps: int = 0
    """Along the gradient."""
    infeasible: int = 0
    """Trials scored in full that break a limit."""
    shares: list[float] = field(default_factory=list)
    """Of the search documents, how much was scored for each trial that scored any."""
    front: list[TrialRecord] = field(default_factory=list)
    """With several objectives: of what is climbed, by the first, best first."""
    best: TrialRecord | None = None
    best_baseline: TrialRecord | None = None
    plateau: Plateau | None = None
    recent: deque[TrialRecord] = field(default_factory=lambda: deque(maxlen=_RECENT))
    """The last trials, the newest last."""
    baselines: dict[str, TrialRecord] = field(default_factory=dict)
    """Name -> the baseline, in the order of their ends."""
    devices: tuple[torch.device, ...] = ()
    """On which candidates are made and scored."""
    workers: Callable[[], str] | None = None
    """Tells how the workers of this machine are; None: this process is the only one."""
    processes: Callable[[], Sequence[int]] = tuple
    """Their process numbers."""
    _here: int = 0
    _documents_here: int = 0
    _started: float = field(default_factory=time.monotonic)

    def add(self, record: TrialRecord, *, earlier: bool = False) -> None:
        """Counts a trial; `earlier`: one that another process finished, which tells no speed."""
        if record.state not in DONE:
            return
        self.done += 1
        self.recent.append(record)
        if record.baseline is not None:
            self.baselines[record.baseline] = record
        self.documents += record.scored
        if not earlier:
            self._here += 1
            self._documents_here += record.scored
        self.failed += record.state == "failed"
        self.pruned += record.state == "pruned"
        self.steps += record.state == "step"
        if record.share is not None and record.baseline is None:
            self.shares.append(record.share)
        if record.value is None:
            return
        if not record.feasible:
            self.infeasible += 1
            return
        if self.goal.several:
            known = [*self.front, record]
            self.front = front_of(known, {one.number: one.values for one in known})
            return
        if _above(record, self.best):
            self.best = record
        if record.baseline and _above(record, self.best_baseline):
            self.best_baseline = record

    def rate(self) -> float | None:
        """Trials per hour of this process; None before the first."""
        elapsed = time.monotonic() - self._started
        return 3600 * self._here / elapsed if self._here else None

    def remaining(self) -> timedelta | None:
        """Time until the budget is spent, at the present rate; None where it cannot be told."""
        ends = []
        rate = self.rate()
        if self.budget.trials is not None and rate:
            ends.append(timedelta(hours=(self.budget.trials - self.done) / rate))
        if self.budget.documents is not None and self._documents_here:
            pace = (time.monotonic() - self._started) / self._documents_here
            ends.append(timedelta(seconds=(self.budget.documents - self.documents) * pace))
        if self.budget.deadline is not None:
            ends.append(self.budget.deadline - datetime.now())
        return max(min(ends), timedelta()) if ends else None

    def spent(self) -> dict[str, float]:
        """How much of each limit is used up, from 0 to 1: `57/200 trials` -> 0.285."""
        found = {}
        if (trials := self.budget.trials) is not None:
            found[f"{self.done}/{trials} trials"] = self.done / trials
        if (documents := self.budget.documents) is not None:
            found[f"{self.documents}/{documents} documents"] = self.documents / documents
        if self.budget.deadline is not None:
            elapsed = timedelta(seconds=time.monotonic() - self._started)
            whole = elapsed + max(self.budget.deadline - datetime.now(), timedelta())
            found[f"{_rounded(elapsed)} of {_rounded(whole)}"] = elapsed / whole
        return {text: min(share, 1.0) for text, share in found.items()}

    def line(self) -> str:
        """`trial 57/200 · best 61.2 points (trial 48) · best baseline 44.5 points (ties) · ...`"""
        limit = f"/{self.budget.trials}" if self.budget.trials is not None else ""
        words = [f"trial {self.done}{limit}"]
        if self.budget.documents is not None:
            words.append(f"{self.documents}/{self.budget.documents} documents")
        for name, record in (("best", self.best), ("best baseline", self.best_baseline)):
            if record is not None and record.value is not None:
                value = self.goal.text(record.value, record.metrics)
                words.append(f"{name} {value} ({record.name})")
        if self.front:
            words += self.front_words()
        words += self.count_words()
        if self.plateau is not None:
            words.append(self.plateau.short())
        words += self.pace_words()
        if self.workers is not None:
            words.append(self.workers())
        return " · ".join(words)

    def count_words(self) -> list[str]:
        """`3 gradient steps`, `12 pruned, 40 % of documents`, ..., as far as there are any."""
        words = []
        if self.steps:
            words.append(f"{self.steps} gradient steps")
        if self.pruned:
            share = 100 * mean(self.shares) if self.shares else 100.0
            words.append(f"{self.pruned} pruned, {share:.0f} % of documents")
        if self.infeasible:
            words.append(f"{self.infeasible} break constraints")
        if self.failed:
            words.append(f"{self.failed} failed")
        return words

    def pace_words(self) -> list[str]:
        """`112 trials/h`, `1:16:00 left`, as far as they can be told."""
        words = []
        if (rate := self.rate()) is not None:
            words.append(f"{rate:.0f} trials/h")
        if (left := self.remaining()) is not None:
            words.append(f"{_rounded(left)} left")
        return words

    def front_words(self) -> list[str]:
        """`front of 5`, `best maths 61.2 points (trial 48)`, ..."""
        words = [f"front of {len(self.front)}"]
        for place, (name, part) in enumerate(self.goal.split(self.goal.climbed).items()):
            best = max(self.front, key=lambda record: record.values[place])
            value = amount(best.values[place], part.unit)
            words.append(f"best {name} {value} ({best.name})")
        return words


def _rounded(span: timedelta) -> timedelta:
    return timedelta(seconds=round(span.total_seconds()))


def _above(record: TrialRecord, other: TrialRecord | None) -> bool:
    if other is None or other.value is None or record.value is None:
        return record.value is not None
    return record.value > other.value


def outcome_text(record: TrialRecord, goal: Goal) -> str:
    """How one trial ended, for the log."""
    if record.estimate is not None:
        estimate = amount(record.estimate, goal.climbed.unit, digits=2)
        pruned = "" if record.state == "step" else "pruned "
        return f"{pruned}{record.pruned_because}; estimate {estimate}"
    if record.value is None:
        return record.failure or record.state
    text = goal.text(record.value, record.metrics, digits=2)
    return "; ".join(filter(None, (text, broken_text(record.violations))))

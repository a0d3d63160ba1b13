"""How far a search is: one line, for a terminal or a log."""

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from evomerge.searching.loop import Budget
from evomerge.searching.record import TrialRecord


@dataclass(slots=True, kw_only=True)
class Progress:
    """Counts finished trials; values are in points (percent of the objective)."""

    budget: Budget
    done: int = 0
    failed: int = 0
    best: TrialRecord | None = None
    best_baseline: TrialRecord | None = None
    _here: int = 0
    _started: float = field(default_factory=time.monotonic)

    def add(self, record: TrialRecord, *, earlier: bool = False) -> None:
        """Counts a trial; `earlier`: one that another process finished, which tells no speed."""
        if record.state not in ("complete", "failed"):
            return
        self.done += 1
        self._here += not earlier
        self.failed += record.state == "failed"
        if record.value is None:
            return
        if self.best is None or record.value > (self.best.value or 0.0):
            self.best = record
        if record.baseline and (
            self.best_baseline is None or record.value > (self.best_baseline.value or 0.0)
        ):
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
        if self.budget.deadline is not None:
            ends.append(self.budget.deadline - datetime.now())
        return max(min(ends), timedelta()) if ends else None

    def line(self) -> str:
        """`trial 57/200 · best 61.2 (trial 48) · best baseline 44.5 (ties) · 830 trials/h · ...`"""
        limit = f"/{self.budget.trials}" if self.budget.trials is not None else ""
        words = [f"trial {self.done}{limit}"]
        for name, record in (("best", self.best), ("best baseline", self.best_baseline)):
            if record is not None and record.value is not None:
                words.append(f"{name} {100 * record.value:.1f} ({record.name})")
        if self.failed:
            words.append(f"{self.failed} failed")
        if (rate := self.rate()) is not None:
            words.append(f"{rate:.0f} trials/h")
        if (left := self.remaining()) is not None:
            words.append(f"{timedelta(seconds=round(left.total_seconds()))} left")
        return " · ".join(words)

"""Does the winner beat the best plain merge on documents that the search never saw?

The winner is chosen on the search documents alone, but a reader may prefer another finalist, and
its hardest rival is found on the holdout. So the intervals of the gain over the best baseline hold
for all finalists at once, and whichever baseline is best in truth (`Differences.over_best` in
intervals.py says how); those of the gain over the best single source likewise. "Better" is wrong in
at most 2.5 % of runs, as is "worse".

Task by task, the winner is compared with the best baseline; those intervals are corrected for the
number of tasks.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from evomerge.searching.intervals import Gain
from evomerge.searching.objective import Unit, amount

Conclusion = Literal["better", "no difference shown", "worse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a run ended."""

    winner: int
    """Trial number; chosen on the search documents."""
    opponent: int
    """The baseline that did best on the holdout: the hardest one to beat."""
    gain: Gain
    """Over the best baseline."""
    optimism: float
    """The winner's objective on the search documents minus that on the holdout."""
    optimism_unit: Unit = "points"
    """Nats where only the smooth metrics were scored on both sides."""
    score: float | None = None
    """The winner's objective on the holdout documents. None, as the next three, in verdicts of
    versions that did not tell."""
    source: int | None = None
    """The single source that did best on the holdout."""
    source_gain: Gain | None = None
    """Over the best single source."""
    tasks: Mapping[str, Gain] = field(default_factory=dict)
    """Task -> the gain over the opponent there."""
    comparisons: tuple[int, int] = (1, 1)
    """Finalists and baselines that the intervals are corrected for."""

    @property
    def conclusion(self) -> Conclusion:
        """Beside the best baseline."""
        if self.gain.shown and self.winner != self.opponent:
            return "better"
        return "worse" if self.gain.loss_shown else "no difference shown"

    def worse_tasks(self) -> dict[str, Gain]:
        """Tasks on which the winner was shown to be worse than the best baseline."""
        return {task: gain for task, gain in self.tasks.items() if gain.loss_shown}

    def sentence(self, winner: str, opponent: str) -> str:
        """The verdict in plain words."""
        if self.winner == self.opponent:
            return (
                f"No difference shown: no candidate did better than the baseline {opponent}, "
                "which is the winner."
            )
        if self.conclusion == "better":
            return f"Better: {winner} beats the best baseline ({opponent}) by {self._gain()}."
        if self.conclusion == "worse":
            return f"Worse: {winner} is behind the best baseline ({opponent}): {self._gain()}."
        return (
            f"No difference shown between {winner} and the best baseline ({opponent}): "
            f"{self._gain()}."
        )

    def _gain(self) -> str:
        return self.gain.sentence()

    def lines(self, names: Mapping[int, str]) -> list[str]:
        """All that it says, a sentence per line. names: trial number -> name."""
        winner = names[self.winner]
        lines = [self.sentence(winner, names[self.opponent])]
        for task, gain in self.worse_tasks().items():
            lines.append(f"Worse on task {task}: {gain.sentence()} beside {names[self.opponent]}.")
        if self.source is not None and self.source_gain is not None:
            lines.append(
                f"Over the best single source ({names[self.source]}): "
                f"{self.source_gain.sentence()}."
            )
        if self.score is not None:
            score = amount(self.score, self.gain.unit)
            lines.append(
                f"Score of {winner} on the holdout: {score}; optimism: its score on the search "
                f"documents is {self.optimism_text()} from that."
            )
        else:
            lines.append(
                f"Optimism: its score on the search documents is {self.optimism_text()} from that "
                "on the holdout."
            )
        if self.comparisons != (1, 1) and self.gain.low is not None:
            finalists, baselines = self.comparisons
            lines.append(
                f"The intervals are corrected for {_count(finalists, 'finalist')}, "
                f"{_count(baselines, 'baseline')}"
                + (f" and {_count(len(self.tasks), 'task')}" if self.tasks else "")
                + "."
            )
        return lines

    def optimism_text(self) -> str:
        """`+2.1 points`, or `+0.031 nats`."""
        return amount(self.optimism, self.optimism_unit, sign=True)

    def to_json(self) -> dict[str, Any]:
        """As a study keeps it."""
        return asdict(self)


def verdict_from_json(stored: Mapping[str, Any]) -> Verdict:
    """What `to_json` wrote, here or in an earlier version."""
    source_gain = stored.get("source_gain")
    return Verdict(
        **{
            **stored,
            "gain": Gain(**stored["gain"]),
            "source_gain": None if source_gain is None else Gain(**source_gain),
            "tasks": {task: Gain(**gain) for task, gain in stored.get("tasks", {}).items()},
            "comparisons": tuple(stored.get("comparisons", (1, 1))),
        }
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

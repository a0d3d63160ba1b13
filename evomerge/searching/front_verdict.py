"""The end of a run with several objectives: the front on documents that the search never saw.

The front is chosen on the search documents. On the holdout, for each objective, its best member
there is compared with the baseline that does best, with the paired interval of a single objective's
verdict; and it is counted which members no finalist or baseline dominates there.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import optuna

from evomerge.scoring.scorecard import from_json
from evomerge.searching.finalists import holdout_metrics, scored_on_holdout
from evomerge.searching.front import front_of, knee_of, pareto_front
from evomerge.searching.holdout_limits import check_limits
from evomerge.searching.objective import Goal
from evomerge.searching.record import read_trials
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.verdict import Gain, Verdict, paired_gain

FRONT = "front"
"""Study attribute: what `decide_front` found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontVerdict:
    """How a run with several objectives ended."""

    members: tuple[int, ...]
    """Trial numbers of the front on the search documents, as far as the holdout has them."""
    knee: int
    held: tuple[int, ...]
    """Members that nothing scored on the holdout dominates there."""
    verdicts: Mapping[str, Verdict]
    """Objective -> the member that is best at it on the search documents, against the hardest
    baseline."""

    def sentences(self, names: Mapping[int, str]) -> list[str]:
        """In plain words; names of the trials by number."""
        lines = [
            f"Front of {len(self.members)}: {', '.join(names[n] for n in self.members)}; its knee "
            f"is {names[self.knee]}. Of them, {len(self.held)} are still on the front of all that "
            "was scored on the holdout."
        ]
        for objective, verdict in self.verdicts.items():
            sentence = verdict.sentence(names[verdict.winner], names[verdict.opponent])
            lines.append(
                f"{objective}: {sentence} Optimism: {verdict.optimism_text()} on the search "
                "documents."
            )
        return lines


def decide_front(
    study: optuna.Study, folder: RunFolder, goal: Goal, seed: int
) -> FrontVerdict | None:
    """The verdict, recorded in the study; None where nothing could be scored on the holdout."""
    records = {record.number: record for record in read_trials(study)}
    scored = scored_on_holdout(study, folder, goal.points)
    front, on_search = pareto_front(records.values(), goal)
    members = [record for record in front if record.number in scored]
    rivals = [number for number in scored if records[number].baseline is not None]
    rivals = [number for number in rivals if records[number].feasible] or rivals
    if not members or not rivals:
        return None
    held = {n: from_json(rows) for n, rows in holdout_metrics(study.user_attrs).items()}
    verdicts = {}
    for place, (name, points) in enumerate(goal.split(goal.points).items()):
        winner = max((r.number for r in members), key=lambda number: on_search[number][place])
        opponent = max(rivals, key=lambda number: points.value(scored[number].metrics))
        if records[winner].baseline is not None:
            opponent = winner
        there = goal.values(goal.judged, held[winner])
        assert there is not None  # it was scored on goal.holdout_kinds
        verdicts[name] = Verdict(
            winner=winner,
            opponent=opponent,
            gain=paired_gain(scored[winner], scored[opponent], points, seed),
            optimism=on_search[winner][place] - there[place],
            optimism_unit=goal.split(goal.judged)[name].unit,
        )
    values = {
        number: tuple(part.value(own.metrics) for part in goal.split(goal.points).values())
        for number, own in scored.items()
    }
    top = {record.number for record in front_of(list(records.values()), values)}
    found = FrontVerdict(
        members=tuple(record.number for record in members),
        knee=knee_of(members, on_search).number,
        held=tuple(record.number for record in members if record.number in top),
        verdicts=verdicts,
    )
    study.set_user_attr(FRONT, asdict(found))
    check_limits(study, folder, goal, found.members, seed)
    return found


def read_front(attributes: Mapping[str, Any]) -> FrontVerdict | None:
    """What `decide_front` recorded; None before a run's end, or with one objective."""
    stored = attributes.get(FRONT)
    if stored is None:
        return None
    return FrontVerdict(
        members=tuple(stored["members"]),
        knee=stored["knee"],
        held=tuple(stored["held"]),
        verdicts={
            name: Verdict(**{**row, "gain": Gain(**row["gain"])})
            for name, row in stored["verdicts"].items()
        },
    )

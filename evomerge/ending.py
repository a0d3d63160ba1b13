"""The end of a search: recorded in its study, and told whom the configuration names."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna

from evomerge.errors import EvomergeError
from evomerge.notify import EndState, Notice, send
from evomerge.searching.ending import record_end, record_start
from evomerge.searching.front_verdict import FrontVerdict
from evomerge.searching.record import read_trials
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.verdict import Verdict

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call of `search` ended."""

    folder: Path
    verdict: Verdict | None
    """None where the search was stopped before its budget was spent, or has several objectives."""
    front: FrontVerdict | None = None
    """What takes its place with several objectives."""
    stopped: bool
    stopped_by: str | None = None
    """Name of the signal: SIGINT is the user's Ctrl-C."""
    storage: str | None
    """URL of the study, where it is not in the folder."""


def until_end(
    study: optuna.Study, folder: RunFolder, notify: str | None, run: Callable[[], Outcome]
) -> Outcome:
    """What `run` returns, or raises. The study keeps how it ended, and `notify` is told, unless the
    user stopped it: who presses Ctrl-C knows. The folder's lock is given back before."""
    record_start(study)
    try:
        outcome = run()
    except KeyboardInterrupt:
        _record(study, "stopped", "at once, by the user")
        raise
    except Exception as error:
        because = str(error)
        if not isinstance(error, EvomergeError):
            because = f"{type(error).__name__}: {error}"
        _record(study, "failed", because)
        folder.close()
        _tell(notify, folder, state="failed", sentence=because)
        raise
    if outcome.stopped:
        _record(study, "stopped", outcome.stopped_by or "asked to")
        folder.close()
        if outcome.stopped_by != "SIGINT":
            sentence = f"stopped by {outcome.stopped_by}; the same command goes on"
            _tell(notify, folder, state="stopped", sentence=sentence)
        return outcome
    names = {record.number: record.name for record in read_trials(study)}
    sentence, winner, points = _result(outcome, names)
    _record(study, "finished", sentence)
    folder.close()
    _tell(notify, folder, state="finished", sentence=sentence, winner=winner, points=points)
    return outcome


def _record(study: optuna.Study, state: EndState, because: str) -> None:
    log.info("%s: %s", state, because)
    try:
        record_end(study, state, because)
    except Exception as error:  # noqa: BLE001 - it must not hide how the search ended
        log.warning("the end could not be recorded: %s: %s", type(error).__name__, error)


def _tell(
    notify: str | None,
    folder: RunFolder,
    *,
    state: EndState,
    sentence: str,
    winner: str | None = None,
    points: float | None = None,
) -> None:
    if notify is not None:
        run = str(folder.path.resolve())
        send(notify, Notice(run=run, state=state, sentence=sentence, winner=winner, points=points))


def _result(outcome: Outcome, names: dict[int, str]) -> tuple[str, str | None, float | None]:
    """(sentence, winner, its points on the holdout), as far as there are such."""
    if outcome.front is not None:
        return outcome.front.sentences(names)[0], None, None
    verdict = outcome.verdict
    if verdict is None:
        return "ended without a winner", None, None
    winner = names[verdict.winner]
    in_points = verdict.score is not None and verdict.gain.unit == "points"
    points = 100 * (verdict.score or 0.0) if in_points else None
    return verdict.sentence(winner, names[verdict.opponent]), winner, points

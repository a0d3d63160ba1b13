"""How a run ended, as its study keeps it; a run that was killed has no end."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import optuna

from evomerge.notify import EndState

ENDED = "ended"
"""Study attribute: how the last start ended; None while it runs, and after a kill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The end of a run's last start."""

    state: EndState
    because: str
    time: str
    """ISO 8601, UTC."""


def record_start(study: optuna.Study) -> None:
    """Until an end is recorded, there is none."""
    study.set_user_attr(ENDED, None)


def record_end(study: optuna.Study, state: EndState, because: str) -> None:
    """Keeps the end with the present time."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    study.set_user_attr(ENDED, asdict(Ended(state=state, because=because, time=now)))


def read_end(attributes: Mapping[str, Any], *, judged: bool) -> Ended | None:
    """The end that a study's attributes tell; None where there was none.

    judged: whether the run has a verdict, which is all that runs of earlier versions kept.
    """
    if ENDED not in attributes and judged:
        return Ended(state="finished", because="", time="")
    stored = attributes.get(ENDED)
    return None if stored is None else Ended(**stored)

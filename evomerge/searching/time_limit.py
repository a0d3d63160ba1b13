"""A limit on the time that a trial may take."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from evomerge.errors import CandidateError

_AGAIN = 1.0  # seconds after which a block that swallowed the interruption is interrupted again


class _OutOfTimeError(BaseException):
    """Not an Exception, which a scorer may catch."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """CandidateError where the block takes longer; None: it may take any time.

    Python code is interrupted wherever it is, also where it sleeps or waits. Code outside of Python
    that never comes back is not: there the process has to be killed, as that of a worker is. Only
    the main thread can be interrupted; elsewhere this raises ValueError.
    """
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("a time limit holds in the main thread alone")

    ended = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not ended:
            raise _OutOfTimeError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    except _OutOfTimeError:
        ended = True
        raise CandidateError(f"took longer than {in_minutes(seconds)} (trial_minutes)") from None
    finally:
        ended = True
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def in_minutes(seconds: float) -> str:
    """`30 minutes`, `1.5 minutes`."""
    return f"{round(seconds / 60, 2):g} minutes"

"""Ctrl-C, or a termination signal: the first finishes the trial under way, the second stops now."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Interruption:
    """What stopped a search."""

    by: str | None = None
    """Name of the first signal; None: there was none."""


@contextmanager
def on_interrupt(ask_to_stop: Callable[[], None]) -> Iterator[Interruption]:
    """Calls `ask_to_stop` at the first signal; raises KeyboardInterrupt at the second.

    Only the main thread may handle signals; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Interruption()
        return
    interruption = Interruption()

    def handle(number: int, frame: FrameType | None) -> None:
        if interruption.by is not None:
            raise KeyboardInterrupt
        interruption.by = signal.Signals(number).name
        log.warning("stopping after the trial under way; once more stops now")
        ask_to_stop()

    before: dict[int, Any] = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

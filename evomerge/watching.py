"""Looks at a run again and again until it ends."""

import time
from collections.abc import Callable

from rich.console import Console

from evomerge.describe import describe_report
from evomerge.report import RunReport


def watch(
    read: Callable[[], RunReport],
    console: Console,
    seconds: float,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Prints how the run stands every so many seconds, on a cleared screen; where that is no
    terminal, only what has changed. Returns after the run's end, or at Ctrl-C."""
    last = None
    try:
        while True:
            report = read()
            text = describe_report(report)
            if console.is_terminal:
                console.clear()
            if console.is_terminal or text != last:
                console.print(text, markup=False)
            last = text
            if not report.running:
                return
            wait(seconds)
    except KeyboardInterrupt:
        return

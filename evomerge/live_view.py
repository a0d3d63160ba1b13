"""What a search shows while it runs: a panel at the bottom of a terminal, elsewhere plain lines.

What is logged meanwhile goes through the same console, above the panel, so that neither tears the
other.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from evomerge.devices import used_memory
from evomerge.searching.objective import amount
from evomerge.searching.progress import Progress
from evomerge.searching.record import TrialRecord

OnProgress = Callable[[Progress, TrialRecord | None], None]
_STYLES = {"complete": "green", "pruned": "yellow", "failed": "red", "step": "cyan"}
_SECONDS_BETWEEN_LINES = 30.0


class ConsoleHandler(logging.Handler):
    """Prints messages as they are on a console; a terminal's lines break between words."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one message."""
        self._console.print(Text(self.format(record)), soft_wrap=not self._console.is_terminal)


class LiveView:
    """The panel. A thread of its own draws it: what changes with trials is laid out after each, and
    only times and memory are read there."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._progress: Progress | None = None
        self._trials: RenderableType = ""

    def __call__(self, progress: Progress, record: TrialRecord | None) -> None:
        """Takes up what is new; `record` is already part of it."""
        self._trials = _trials(progress)
        self._progress = progress

    def render(self) -> RenderableType:
        """The panel as it is now."""
        progress = self._progress
        if progress is None:
            body: RenderableType = "loading"
        else:
            rows = [("memory", used_memory(progress.devices, progress.processes()))]
            if progress.workers is not None:
                rows.append(("workers", progress.workers()))
            memory = _rows(rows)
            hint = Text("Ctrl-C ends after this trial", style="dim", overflow="ellipsis")
            body = Group(_budget(progress), memory, self._trials, hint)
        return Panel(body, title=Text(self._title, overflow="ellipsis"), title_align="left")


def _budget(progress: Progress) -> RenderableType:
    """A bar for the limit that will be reached first, and the pace."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    spent = progress.spent()
    if spent:
        words, share = max(spent.items(), key=lambda item: item[1])
        grid.add_row(ProgressBar(total=1.0, completed=share), words)
    pace = " · ".join(progress.pace_words())
    return Group(grid, _rows([("pace", pace)] if pace else []))


def _trials(progress: Progress) -> RenderableType:
    """The best, what became of the others, the last ones, the baselines."""
    goal = progress.goal
    rows = [
        (name, f"{goal.text(record.value, record.metrics)} ({record.name})")
        for name, record in (("best", progress.best), ("baseline", progress.best_baseline))
        if record is not None and record.value is not None
    ]
    rows += [("front", " · ".join(progress.front_words()))] if progress.front else []
    rows += [("of these", "; ".join(counts))] if (counts := progress.count_words()) else []
    rows += [] if progress.plateau is None else [("plateau", progress.plateau.short())]
    last = Table.grid(padding=(0, 1), expand=True)
    for widest, share in ((20, None), (None, None), (None, 1)):
        last.add_column(no_wrap=True, overflow="ellipsis", max_width=widest, ratio=share)
    for record in progress.recent:
        state = Text(record.state, style=_STYLES.get(record.state, ""))
        last.add_row(Text(record.name), state, Text(_result(record, progress)))
    parts: list[RenderableType] = [_rows(rows), "", last]
    if progress.baselines:
        scores = (f"{n} {_score(r, progress)}" for n, r in progress.baselines.items())
        parts += ["", Text("baselines: " + " · ".join(scores))]
    return Group(*parts, "")


def _rows(rows: list[tuple[str, str]]) -> Table:
    """Names and what there is to say of each."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(style="dim", no_wrap=True, min_width=8)
    grid.add_column(ratio=1)
    for name, words in rows:
        grid.add_row(name, Text(words))
    return grid


def _result(record: TrialRecord, progress: Progress) -> str:
    """What it scored in full, its estimate, or why it failed."""
    if record.value is not None:
        return progress.goal.text(record.value, record.metrics)
    return record.failure or _score(record, progress)


def _score(record: TrialRecord, progress: Progress) -> str:
    """As short as can be: points where they are known, else what is climbed; `~`: an estimate."""
    goal = progress.goal
    points = None if record.value is None else goal.points.value_of(record.metrics)
    if points is not None:
        return amount(points, goal.points.unit)
    value = record.estimate if record.value is None else record.value
    if value is None:
        return record.state
    return f"{'~' if record.value is None else ''}{amount(value, goal.climbed.unit)}"


class PlainLines:
    """A line every 30 seconds, and at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = 0.0
        self._untold: Progress | None = None

    def __call__(self, progress: Progress, record: TrialRecord | None) -> None:
        """Says how far the search is, if it is time."""
        if record is None:
            return
        self._untold = progress
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self.tell()

    def tell(self) -> None:
        """Says what was not said yet."""
        if self._untold is not None:
            self._last = time.monotonic()
            self._console.print(Text(self._untold.line()), soft_wrap=True)
            self._untold = None


@contextmanager
def shown(console: Console, title: str) -> Iterator[OnProgress]:
    """What is to be called after every trial. The panel is gone at the end."""
    # A pipe may be told to take colours, but nothing can be drawn anew there.
    if not (console.is_interactive and console.file.isatty()):
        lines = PlainLines(console)
        try:
            yield lines
        finally:
            lines.tell()
        return
    view = LiveView(title)
    with Live(get_renderable=view.render, console=console, refresh_per_second=4, transient=True):
        yield view

"""Figures as tables show them."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from urllib.parse import quote


def duration(time: timedelta) -> str:
    """`3 h 12 min`, `4 min`, `20 s`."""
    seconds = int(time.total_seconds())
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 60} min" if seconds >= 60 else f"{seconds} s"


def number(value: float | None, digits: int = 1) -> str:
    """A figure for a table; nothing for what is not known."""
    return "" if value is None or value != value else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 1) -> str:
    """The same with its sign."""
    return "" if value is None or value != value else f"{value:+.{digits}f}"


def now() -> str:
    """For a page that is kept."""
    return datetime.now().strftime("%Y-%m-%d %H:%M")


FILTERS: Mapping[str, Callable[..., str]] = {
    "number": number,
    "signed": signed,
    "duration": duration,
    "quote": lambda text: quote(str(text), safe=""),
}
"""For templates."""

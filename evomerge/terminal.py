"""What a command does with the terminal: where it prints, how it fails, what is kept quiet."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from evomerge.errors import EvomergeError

OUT = Console(highlight=False, soft_wrap=True)
"""Results."""
ERR = Console(stderr=True, highlight=False)
"""Progress, messages and errors."""


@contextmanager
def errors(code: int = 1) -> Iterator[None]:
    """A mistake of the user's is a sentence and an exit code, not a traceback."""
    try:
        yield
    except EvomergeError as error:
        ERR.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(code) from None
    except KeyboardInterrupt:
        ERR.print("stopped now; the same command goes on", soft_wrap=True)
        raise typer.Exit(130) from None


@contextmanager
def messages() -> Iterator[None]:
    """What the program says of its work goes to the terminal."""
    from evomerge.live_view import ConsoleHandler

    handler = ConsoleHandler(ERR)
    handler.addFilter(lambda record: record.levelno > logging.INFO or record.name in _SPOKEN)
    logger = logging.getLogger("evomerge")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


_SPOKEN = (
    *("evomerge.verbs", "evomerge.session", "evomerge.beginning", "evomerge.working"),
    *("evomerge.workers.supervisor", "evomerge.workers.joining"),
    "evomerge.going_on",
    "evomerge.searching.finalists",
    "evomerge.methods.compiled",
)


@contextmanager
def quiet() -> Iterator[None]:
    """The libraries' own progress bars and notices, which would tear the progress line."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import optuna
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield

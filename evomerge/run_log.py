"""The log file of a run, which all of its workers write."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from evomerge.searching.run_folder import RunFolder


class _RunLog(logging.FileHandler):
    """Says once that it cannot write, where logging would print each message's traceback."""

    _said = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not self._said:
            self._said = True
            log = logging.getLogger(__name__)
            log.warning("%s cannot be written for now; the search goes on", self.baseFilename)


@contextmanager
def logging_to(folder: RunFolder, label: str | None = None) -> Iterator[None]:
    """What is logged inside goes to the folder's log, too; label: of the worker that says it."""
    handler = _RunLog(folder.log, encoding="utf-8")
    who = "" if label is None else f"{label.replace('%', '%%')}: "
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {who}%(message)s"))
    logger = logging.getLogger("evomerge")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        with suppress(OSError):  # of a full disk; it has been said
            handler.close()

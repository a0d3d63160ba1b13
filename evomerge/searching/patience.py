"""Waiting for what comes back: room on a disk, a storage or a shared folder that is gone."""

import errno
import logging
from collections.abc import Callable
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_exponential,
)

from evomerge.errors import UserError

log = logging.getLogger(__name__)

_HOURS = 12.0
"""How long is waited at most: a night."""
_FIRST, _MOST = 0.2, 30.0  # seconds between tries
_PASSING = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT),
        *(errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN),
    }
)
Result = TypeVar("Result")


def patiently(
    what: str,
    action: Callable[[], Result],
    passes: Callable[[BaseException], bool] = lambda error: is_passing(error),
) -> Result:
    """What `action` returns, tried again and again while it fails for a reason that may pass.

    what: named in the log. passes: whether an error may. UserError after twelve hours.
    """

    def tell(state: RetryCallState) -> None:
        wait = state.next_action.sleep if state.next_action else 0.0
        log.warning("%s: %s; tried again in %.1f s", what, _root(state), wait)

    def give_up(state: RetryCallState) -> Result:
        raise UserError(f"{what}: {_root(state)}; given up after {_HOURS:g} hours")

    tries = Retrying(
        retry=retry_if_exception(passes),
        stop=stop_after_delay(3600 * _HOURS),
        wait=wait_exponential(multiplier=_FIRST, max=_MOST),
        before_sleep=tell,
        retry_error_callback=give_up,
    )
    return tries(action)


def _root(state: RetryCallState) -> str:
    """What is behind the last try's error, in a line."""
    error = state.outcome.exception() if state.outcome else None
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def is_passing(error: BaseException) -> bool:
    """Whether a file operation failed for want of space, or of a file system that may come back."""
    return isinstance(error, OSError) and error.errno in _PASSING

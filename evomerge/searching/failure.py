"""Why a candidate could not be made, scored or differentiated, in words."""

import logging

from evomerge.errors import EvomergeError, SearchError

log = logging.getLogger(__name__)


def reason_of(error: Exception, what: str) -> str:
    """For the record; the log gets the traceback of what nobody expected.

    what: the trial, as the log calls it. A SearchError, of which no candidate is the reason, is
    raised again.
    """
    if isinstance(error, SearchError):
        raise error
    if isinstance(error, EvomergeError):
        return str(error)
    log.error("%s: scoring or merging raised", what, exc_info=error)
    return f"{type(error).__name__}: {error}"

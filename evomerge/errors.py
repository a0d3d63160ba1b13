"""The errors that evomerge raises on purpose.

EvomergeError
├── UserError       a mistake in what was asked for; raised before work starts; says what,
│                   where, what was expected and what to do
├── CandidateError  one candidate cannot be made or scored; the trial is recorded as failed
│                   with this reason and the search goes on
└── SearchError     what the whole search rests on is gone; it ends, no trial is to blame, and
                    the same command goes on once that is mended
"""

import difflib
from collections.abc import Iterable

EXIT_OF_MISTAKE = 64
"""Exit code of a worker that found a mistake, which another start would find too (sysexits.h)."""

_COMPARED = 200  # characters of names that are looked at for likeness
_LISTED = 500  # names


class EvomergeError(Exception):
    """Base of them; never raised itself."""


class UserError(EvomergeError):
    """A mistake in what was asked for, found before work starts."""


class CandidateError(EvomergeError):
    """One candidate cannot be made or scored; others can."""


class SearchError(EvomergeError):
    """The search cannot go on before something is mended; no candidate is to blame."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Sentence that names the nearest known name and lists all of them.

    >>> did_you_mean("tise", ["ties", "linear"])
    "did you mean 'ties'? Known: linear, ties"
    """
    names = sorted(map(str, known))
    # Both may come from a file; comparing takes the product of their lengths.
    comparable = (
        [each for each in names if len(each) <= _COMPARED] if len(name) <= _COMPARED else []
    )
    near = difflib.get_close_matches(name, comparable[:_LISTED], n=1, cutoff=0.5)
    listing = f"Known: {', '.join(names[:_LISTED])}" if names else "None is known"
    listing += f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"did you mean '{near[0]}'? {listing}" if near else listing

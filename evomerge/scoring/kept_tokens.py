"""Tokens of requests that are kept, in the same folder, so that no text is tokenised twice.

Files are only added: each holds the requests that were first asked of a model since the last one.
"""

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.files import replacing
from evomerge.scoring.kept_requests import kept_folder
from evomerge.scoring.likelihood import Pair

_LOG = logging.getLogger(__name__)
_NO_LIMIT = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMemory:
    """What a language model knows of texts; it adds to them and never changes an entry."""

    pairs: dict[tuple[str, str], Pair] = field(default_factory=dict)
    """By (context, continuation)."""
    windows: dict[str, list[Pair]] = field(default_factory=dict)
    """By text whose whole log-likelihood is wanted."""
    prompts: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    """By (prompt, most tokens of an answer)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """The tokens of one request."""

    number: int
    """Of the request, among those of its task."""
    limit: int
    """Of a prompt, the most tokens of an answer."""
    pairs: Sequence[Pair]
    """Of a prompt, it and nothing."""


class KeptTokens:
    """Fills a language model's memory with what is kept, and keeps what comes to be known.

    tasks: the requests of each task, in an order that stays, by the name under which they are
    kept. encoding: what decides the tokens beside the tokenizer, such as the model's length.
    """

    def __init__(
        self, memory: TokenMemory, tasks: Mapping[str, Sequence[Any]], encoding: str
    ) -> None:
        self._memory = memory
        self._prefix = f"tokens-{hashlib.sha256(encoding.encode()).hexdigest()[:12]}"
        self._places = {name: _places(requests) for name, requests in tasks.items()}
        for name, requests in tasks.items():
            for path in sorted(kept_folder(name).glob(f"{self._prefix}-*.npz")):
                for entry in _read(path):
                    _remember(memory, requests[entry.number], entry)
        self._known = _counts(memory)

    def keep(self) -> None:
        """Writes what the memory has learnt since the last time."""
        if _counts(self._memory) == self._known:
            return
        for name, places in self._places.items():
            entries = list(_new_entries(self._memory, self._known, places))
            if entries:
                _write(kept_folder(name), self._prefix, entries)
        self._known = _counts(self._memory)


def _places(requests: Sequence[Any]) -> dict[tuple[str, Any], int]:
    """(kind, text or texts) -> number of the first such request."""
    places: dict[tuple[str, Any], int] = {}
    for number, request in enumerate(requests):
        kind, args = request.request_type, request.args
        places.setdefault((kind, args if kind == "loglikelihood" else args[0]), number)
    return places


def _counts(memory: TokenMemory) -> tuple[int, int, int]:
    return len(memory.pairs), len(memory.windows), len(memory.prompts)


def _new_entries(
    memory: TokenMemory, known: tuple[int, int, int], places: Mapping[tuple[str, Any], int]
) -> Iterator[_Entry]:
    """Of the requests of one task. A dict keeps the order in which it was filled."""
    for texts, pair in islice(memory.pairs.items(), known[0], None):
        if (number := places.get(("loglikelihood", texts))) is not None:
            yield _Entry(number=number, limit=_NO_LIMIT, pairs=[pair])
    for text, windows in islice(memory.windows.items(), known[1], None):
        if (number := places.get(("loglikelihood_rolling", text))) is not None:
            yield _Entry(number=number, limit=_NO_LIMIT, pairs=windows)
    for (text, limit), tokens in islice(memory.prompts.items(), known[2], None):
        if (number := places.get(("generate_until", text))) is not None:
            yield _Entry(number=number, limit=limit, pairs=[(tokens, [])])


def _remember(memory: TokenMemory, request: Any, entry: _Entry) -> None:
    kind, args = request.request_type, request.args
    if kind == "loglikelihood":
        memory.pairs[args] = entry.pairs[0]
    elif kind == "loglikelihood_rolling":
        memory.windows[args[0]] = list(entry.pairs)
    else:
        memory.prompts[args[0], entry.limit] = entry.pairs[0][0]


def _write(folder: Path, prefix: str, entries: Sequence[_Entry]) -> None:
    """Named by its content, so that two processes that learn the same write the same file.

    Contexts are written once each, for the choices of a question share theirs.
    """
    pairs = [pair for entry in entries for pair in entry.pairs]
    contexts: dict[tuple[int, ...], int] = {}
    owners = [contexts.setdefault(tuple(pair[0]), len(contexts)) for pair in pairs]
    arrays = {
        "entries": [(entry.number, entry.limit, len(entry.pairs)) for entry in entries],
        "owners": owners,
        "context_lengths": [len(context) for context in contexts],
        "contexts": [token for context in contexts for token in context],
        "continuation_lengths": [len(pair[1]) for pair in pairs],
        "continuations": [token for pair in pairs for token in pair[1]],
    }
    held: dict[str, Any] = {
        name: np.array(values, dtype=np.int32) for name, values in arrays.items()
    }
    digest = hashlib.sha256(b"".join(array.tobytes() for array in held.values())).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            replacing(folder / f"{prefix}-{digest[:16]}.npz") as beside,
            beside.open("wb") as file,
        ):
            np.savez_compressed(file, **held)
    except OSError as error:
        _LOG.warning("tokens are not kept for the next start: %s", error)


def _read(path: Path) -> list[_Entry]:
    """None of them where the file is damaged: it is removed, and its texts tokenised again."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
        entries = held["entries"].reshape(-1, 3).tolist()
        contexts = _split(held["contexts"], held["context_lengths"])
        continuations = _split(held["continuations"], held["continuation_lengths"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        _LOG.warning("%s cannot be read (%s); its texts are tokenised again", path, error)
        with suppress(OSError):
            path.unlink()
        return []
    pairs = zip((contexts[owner] for owner in held["owners"].tolist()), continuations, strict=True)
    return [
        _Entry(number=number, limit=limit, pairs=list(islice(pairs, count)))
        for number, limit, count in entries
    ]


def _split(tokens: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> list[list[int]]:
    values, ends = tokens.tolist(), np.cumsum(lengths).tolist()
    return [values[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]

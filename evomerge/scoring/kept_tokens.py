"""Tokens of requests that are kept, in the same folder, so that no text is tokenised twice.

Files are only added: each holds the requests that were first asked of a model since the last one.
"""

import hashlib
import json
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
    """The tokens of one text, which is or begins with the first text of a request."""

    number: int
    """Of the request."""
    limit: int
    """Of a prompt, the most tokens of an answer; else _PAIR or _WINDOWS."""
    continuation: str
    """Of a pair, what follows; else nothing."""
    pairs: Sequence[Pair]
    """Of a prompt, it and nothing."""


_PAIR, _WINDOWS = -1, -2


class KeptTokens:
    """Fills a language model's memory with what is kept, and keeps what comes to be known.

    tasks: the requests of each task, in an order that stays, by the name under which they are
    kept. encoding: what decides the tokens beside the tokenizer, such as the model's length.
    """

    def __init__(
        self, memory: TokenMemory, tasks: Mapping[str, Sequence[Any]], encoding: str
    ) -> None:
        self.memory = memory
        self._prefix = f"tokens-{hashlib.sha256(encoding.encode()).hexdigest()[:12]}"
        self._numbers: dict[str, dict[str, int]] = {}
        for name, requests in tasks.items():
            texts = [request.args[0] for request in requests]
            # The first of equal texts, whose answers then share what is kept.
            self._numbers[name] = {texts[n]: n for n in reversed(range(len(texts)))}
            for path in sorted(kept_folder(name).glob(f"{self._prefix}-*.npz")):
                for entry in _read(path):
                    _remember(memory, texts[entry.number], entry)
        self._known = _counts(memory)

    def keep(self) -> None:
        """Writes what the memory has learnt since the last time."""
        if _counts(self.memory) == self._known:
            return
        for name, numbers in self._numbers.items():
            entries = list(_new_entries(self.memory, self._known, numbers))
            if entries:
                _write(kept_folder(name), self._prefix, entries)
        self._known = _counts(self.memory)


def _counts(memory: TokenMemory) -> tuple[int, int, int]:
    return len(memory.pairs), len(memory.windows), len(memory.prompts)


def _new_entries(
    memory: TokenMemory, known: tuple[int, int, int], numbers: Mapping[str, int]
) -> Iterator[_Entry]:
    """Of one task, whose first texts are `numbers`. A dict keeps the order of filling."""
    for (context, continuation), pair in islice(memory.pairs.items(), known[0], None):
        if (number := numbers.get(context)) is not None:
            yield _Entry(number=number, limit=_PAIR, continuation=continuation, pairs=[pair])
    for text, windows in islice(memory.windows.items(), known[1], None):
        if (number := numbers.get(text)) is not None:
            yield _Entry(number=number, limit=_WINDOWS, continuation="", pairs=windows)
    for (text, limit), tokens in islice(memory.prompts.items(), known[2], None):
        if (number := numbers.get(text)) is not None:
            yield _Entry(number=number, limit=limit, continuation="", pairs=[(tokens, [])])


def _remember(memory: TokenMemory, text: str, entry: _Entry) -> None:
    if entry.limit == _PAIR:
        memory.pairs[text, entry.continuation] = entry.pairs[0]
    elif entry.limit == _WINDOWS:
        memory.windows[text] = list(entry.pairs)
    else:
        memory.prompts[text, entry.limit] = entry.pairs[0][0]


def _write(folder: Path, prefix: str, entries: Sequence[_Entry]) -> None:
    """Named by its content, so that two processes that learn the same write the same file.

    Contexts are written once each, for the choices of a question share theirs.
    """
    pairs = [pair for entry in entries for pair in entry.pairs]
    contexts: dict[tuple[int, ...], int] = {}
    owners = [contexts.setdefault(tuple(pair[0]), len(contexts)) for pair in pairs]
    texts = json.dumps([entry.continuation for entry in entries])
    arrays: dict[str, Sequence[Any]] = {
        "entries": [(entry.number, entry.limit, len(entry.pairs)) for entry in entries],
        "owners": owners,
        "context_lengths": [len(context) for context in contexts],
        "contexts": [token for context in contexts for token in context],
        "continuation_lengths": [len(pair[1]) for pair in pairs],
        "continuations": [token for pair in pairs for token in pair[1]],
    }
    held: dict[str, Any] = {name: np.array(values, np.int32) for name, values in arrays.items()}
    held["texts"] = np.frombuffer(texts.encode(), np.uint8)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in held.values())).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            replacing(folder / f"{prefix}-{digest[:16]}.npz") as beside,
            beside.open("wb") as file,
        ):
            np.savez_compressed(file, allow_pickle=False, **held)
    except OSError as error:
        _LOG.warning("tokens are not kept for the next start: %s", error)


def _read(path: Path) -> list[_Entry]:
    """None of them where the file is damaged: it is removed, and its texts tokenised again."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
        texts: list[str] = json.loads(held["texts"].tobytes())
        contexts = _split(held["contexts"], held["context_lengths"])
        continuations = _split(held["continuations"], held["continuation_lengths"])
        rows = held["entries"].reshape(-1, 3).tolist()
        owners = held["owners"].tolist()
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        _LOG.warning("%s cannot be read (%s); its texts are tokenised again", path, error)
        with suppress(OSError):
            path.unlink()
        return []
    pairs = zip((contexts[owner] for owner in owners), continuations, strict=True)
    return [
        _Entry(number=number, limit=limit, continuation=text, pairs=list(islice(pairs, count)))
        for (number, limit, count), text in zip(rows, texts, strict=True)
    ]


def _split(tokens: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> list[list[int]]:
    values, ends = tokens.tolist(), np.cumsum(lengths).tolist()
    return [values[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]

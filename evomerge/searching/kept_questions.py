"""What the documents of a run ask: kept in its folder once, to be read without its models."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pyarrow.parquet as pq

from evomerge.errors import UserError
from evomerge.files import replacing
from evomerge.scoring.documents import Split
from evomerge.scoring.questions import Question, cut
from evomerge.scoring.scorer import Scorer
from evomerge.searching.run_folder import RunFolder, Side

log = logging.getLogger(__name__)

QUESTION_LENGTH = 4000
"""Characters of a question, a choice or an expected answer that are kept."""
_PLACE = ["task", "document", "side"]
_TEXTS = ["question", "choices", "expected"]
_ROOM, _PACKED = 64 * 2**20, 100
"""Bytes that the table may have once it is unpacked, beside so many for each of the file's."""
_ROWS = 10_000_000


def keep_questions(folder: RunFolder, scorer: Scorer, splits: Mapping[str, Split]) -> str | None:
    """Writes what every document asks that the search uses, unless it is there already.

    Returns why it could not be done, for the record; None where it is done. A search goes on
    without: no score depends on it.
    """
    sides = [
        (task, number, side)
        for task, split in splits.items()
        for side in get_args(Side)
        for number in sorted(getattr(split, side))
    ]
    if _kept(folder) == sides:
        return None
    try:
        rows: list[dict[str, Any]] = []
        for task in splits:
            own = [place for place in sides if place[0] == task]
            questions = scorer.questions(task, [number for _, number, _ in own])
            rows += [
                dict(zip(_PLACE, place, strict=True)) | _texts(question)
                for place, question in zip(own, questions, strict=True)
            ]
        with replacing(folder.questions) as beside:
            pd.DataFrame(rows).to_parquet(beside, engine="pyarrow", index=False)
    except Exception as error:  # a task's own code may raise; scores need none of it
        reason = f"{folder.questions.name} is not written: {type(error).__name__}: {error}"
        log.warning("%s", reason, exc_info=error)
        return reason
    return None


def read_kept(folder: RunFolder) -> pd.DataFrame:
    """One row per document: task, document (its number in the task), side (search or holdout),
    question, choices (a list of texts; None without any), expected (None without any).

    Raises UserError where the folder holds no such file.
    """
    try:
        return _checked(folder.questions)
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(
            f"{folder.questions}: the documents' questions cannot be read ({error}); expected a "
            "file that a search wrote; `evomerge search` writes it when the run goes on"
        ) from error


def _checked(path: Path) -> pd.DataFrame:
    """The table; ValueError where it is not as `keep_questions` writes it, or larger by far once it
    is unpacked."""
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    with pq.ParquetFile(path) as file:
        found, size = file.metadata, path.stat().st_size
        unpacked = sum(found.row_group(n).total_byte_size for n in range(found.num_row_groups))
        if unpacked > _ROOM + _PACKED * size or found.num_rows > _ROWS:
            raise ValueError(f"{found.num_rows} documents in {unpacked} bytes once unpacked")
    frame = pd.read_parquet(path, engine="pyarrow")
    if missing := [name for name in (*_PLACE, *_TEXTS) if name not in frame]:
        raise ValueError(f"it has no {', '.join(missing)}")
    if not pd.api.types.is_integer_dtype(frame["document"]):
        raise ValueError("the documents have no numbers")
    for name in ("task", "side", "question", "expected"):
        if not all(isinstance(each, str) for each in frame[name].dropna()):
            raise ValueError(f"{name}: expected texts")
    texts = {
        name: frame[name].astype(object).where(frame[name].notna(), None)
        for name in ("question", "expected")
    }
    choices = [None if own is None else list(own) for own in frame["choices"]]
    return frame.assign(**texts, choices=pd.Series(choices, dtype=object))


def _kept(folder: RunFolder) -> list[tuple[str, int, str]]:
    """The documents that the file has, in order; none where there is no file that can be read."""
    try:
        frame = pd.read_parquet(folder.questions, engine="pyarrow", columns=_PLACE)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s); it is written again", folder.questions, error)
        return []
    return list(zip(*(frame[name].tolist() for name in _PLACE), strict=True))


def _texts(question: Question) -> dict[str, Any]:
    expected = question.expected
    return {
        "question": cut(question.text, QUESTION_LENGTH),
        "choices": [cut(choice, QUESTION_LENGTH) for choice in question.choices] or None,
        "expected": None if expected is None else cut(expected, QUESTION_LENGTH),
    }

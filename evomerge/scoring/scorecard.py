"""What a candidate scored: metrics, and the score of every document behind them."""

import gzip
import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import UserError
from evomerge.files import replacing, write_bytes
from evomerge.scoring.answers import AnswerHealth

SMOOTH = "log_probability,reference"
"""The metric that every task may have beside its own: per document, in nats, the log-probability
of the right choice normalised over the choices, or the mean log-probability of the tokens of the
reference (of several: of the most probable one)."""

_ROOM, _PACKED = 64 * 2**20, 100
"""Bytes that a packed file may have once it is unpacked, beside so many for each of its own."""

Answered = Mapping[str, Mapping[int, str]]
"""Task -> document number -> what was answered; without the tasks that have no answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number of one task."""

    task: str
    name: str
    """"metric,filter" as lm-eval writes it: "acc,none", "exact_match,strict-match"."""
    value: float
    standard_error: float | None
    """None where it is not known: one document, or a metric without an estimate."""
    documents: int
    """Number of documents behind the value."""
    higher_is_better: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentScores:
    """One task's score per document, for paired comparisons."""

    documents: tuple[int, ...]
    """Numbers of the documents in their task, ascending."""
    values: Mapping[str, tuple[float, ...]]
    """"metric,filter" -> one value per document, in the order of `documents`.

    In the metric's own unit and direction; NaN where a document does not count for a metric.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorecard:
    """The scores of one candidate."""

    metrics: tuple[Metric, ...]
    per_document: Mapping[str, DocumentScores]
    """Task -> its scores."""
    answers: Mapping[str, AnswerHealth] = field(default_factory=dict)
    """Task -> how its answers ended; without the tasks that generated nothing."""
    answered: Answered = field(default_factory=dict, compare=False)
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    """By phase: "model" for forward passes and decoding, "metric" for all else."""
    remarks: tuple[str, ...] = field(default=(), compare=False)
    """What was not done as usual, in words: memory that ran out, beginnings that are not shared."""
    taken_over: Mapping[str, int] = field(default_factory=dict, compare=False)
    """Kind ("metric", "smooth") -> documents whose scores were known and not computed again."""

    def metric(self, task: str, name: str) -> Metric:
        """The metric of that task and "metric,filter" name; KeyError if it was not scored."""
        for metric in self.metrics:
            if metric.task == task and metric.name == name:
                return metric
        scored = ", ".join(f"{metric.task}: {metric.name}" for metric in self.metrics)
        raise KeyError(f"{task}: {name} is not among the scores ({scored})")


def joined(first: Scorecard, second: Scorecard) -> Scorecard:
    """Scores of one candidate, of several tasks or kinds; the first's where both have them.

    Raises ValueError where both scored a task, but on different documents.
    """
    known = {(metric.task, metric.name) for metric in first.metrics}
    further = [m for m in second.metrics if (m.task, m.name) not in known]
    phases = dict.fromkeys((*first.seconds, *second.seconds))
    return Scorecard(
        metrics=(*first.metrics, *further),
        per_document=joined_documents(first.per_document, second.per_document),
        answers={**second.answers, **first.answers},
        answered=joined_answers(first.answered, second.answered),
        seconds={p: first.seconds.get(p, 0.0) + second.seconds.get(p, 0.0) for p in phases},
        remarks=tuple(dict.fromkeys((*first.remarks, *second.remarks))),
        taken_over={**second.taken_over, **first.taken_over},
    )


def joined_documents(
    first: Mapping[str, DocumentScores], second: Mapping[str, DocumentScores]
) -> dict[str, DocumentScores]:
    """As `joined`, of the scores per document."""
    result = dict(first)
    for task, scores in second.items():
        known = first.get(task, DocumentScores(documents=scores.documents, values={}))
        if known.documents != scores.documents:
            raise ValueError(f"task {task!r}: scores of other documents cannot be joined")
        values = {**scores.values, **known.values}
        result[task] = DocumentScores(documents=scores.documents, values=values)
    return result


def joined_answers(first: Answered, second: Answered) -> dict[str, dict[int, str]]:
    """As `joined`, of the answers."""
    tasks = dict.fromkeys((*first, *second))
    return {task: {**second.get(task, {}), **first.get(task, {})} for task in tasks}


def count_documents(card: Scorecard, kinds: Iterable[str]) -> dict[str, int]:
    """Kind ("metric", "smooth") -> how many documents were scored so, of all tasks."""
    counts = {}
    scores = card.per_document.values()
    for kind in sorted(kinds):
        counted = (own for own in scores if kind == "metric" or SMOOTH in own.values)
        counts[kind] = sum(len(own.documents) for own in counted) - card.taken_over.get(kind, 0)
    return counts


def to_json(metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """Plain lists, dicts, strings and numbers, ready for json.dumps."""
    return [asdict(metric) for metric in metrics]


def from_json(rows: Sequence[Mapping[str, Any]]) -> tuple[Metric, ...]:
    """What `to_json` wrote."""
    return tuple(Metric(**row) for row in rows)


def write_documents(scores: Mapping[str, DocumentScores], path: Path) -> None:
    """Writes scores per document (task -> its scores) as a compressed .npz, beside and renamed.

    Values are kept as float32, document numbers as int32. `read_documents` reads it back.
    """
    arrays: list[np.ndarray[Any, Any]] = []
    layout: dict[str, dict[str, int]] = {}
    for task, own in scores.items():
        layout[task] = {"": len(arrays)}
        arrays.append(np.array(own.documents, dtype=np.int32))
        for name, values in own.values.items():
            layout[task][name] = len(arrays)
            arrays.append(np.array(values, dtype=np.float32))
    # Task names may hold characters that entries of a zip file may not: entries are numbered.
    entries = {str(number): array for number, array in enumerate(arrays)}
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez_compressed(
            file, allow_pickle=False, layout=np.array(json.dumps(layout)), **entries
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentArrays:
    """`DocumentScores` as arrays, for many documents."""

    documents: np.ndarray[Any, Any]
    """int32 [documents], ascending."""
    values: Mapping[str, np.ndarray[Any, Any]]
    """"metric,filter" -> float32 [documents]."""


def read_documents(path: Path) -> dict[str, DocumentScores]:
    """Task -> its scores, as `write_documents` wrote them (values rounded to float32).

    Raises UserError where the file is missing or is no such file.
    """
    return {
        task: DocumentScores(
            documents=tuple(own.documents.tolist()),
            values={name: tuple(values.tolist()) for name, values in own.values.items()},
        )
        for task, own in read_arrays(path).items()
    }


def read_arrays(path: Path) -> dict[str, DocumentArrays]:
    """As `read_documents`."""
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no ordinary file")
        with zipfile.ZipFile(path) as archive:
            _check_size(path, sum(entry.file_size for entry in archive.infolist()))
            layout = json.loads(str(read_array(archive.read("layout.npy"))))
            return {
                task: _arrays({name: archive.read(f"{n:d}.npy") for name, n in places.items()})
                for task, places in layout.items()
            }
    except UserError:
        raise
    except Exception as error:  # a damaged archive fails in many ways
        raise UserError(
            f"{path}: scores per document cannot be read ({type(error).__name__}: {error}); "
            "expected a file that write_documents made; score the trial again to make a new one"
        ) from error


def _arrays(entries: Mapping[str, bytes]) -> DocumentArrays:
    arrays = {name: read_array(content) for name, content in entries.items()}
    documents = arrays.pop("")
    for name, array in {"documents": documents, **arrays}.items():
        if array.shape != (len(documents),) or array.dtype.kind not in "iuf":
            raise ValueError(
                f"{name}: {array.dtype} {list(array.shape)}; expected numbers in a row"
            )
    return DocumentArrays(documents=documents, values=arrays)


def read_array(content: bytes) -> np.ndarray[Any, Any]:
    """The array of an .npy file; ValueError where that does not hold what its header says.

    numpy's own reading makes room for what the header says, before it looks whether that is there.
    """
    file = BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"an array of the format {version}; expected (1, 0)")
    shape, in_columns, kind = np.lib.format.read_array_header_1_0(file)
    data = content[file.tell() :]
    if kind.hasobject or kind.itemsize == 0 or math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"an array {kind} {list(shape)} in {len(data)} bytes")
    array: np.ndarray[Any, Any] = np.frombuffer(data, dtype=kind)
    return array.reshape(shape, order="F" if in_columns else "C").copy()


def _check_size(path: Path, size: int) -> None:
    """UserError for a file that is larger by far once it is unpacked."""
    if size > _ROOM + _PACKED * path.stat().st_size:
        raise UserError(
            f"{path}: would take {size / 2**20:.0f} MiB once unpacked; expected a file that "
            "evomerge wrote: remove it to do without"
        )


def write_answers(answered: Answered, path: Path) -> None:
    """Writes what was answered as compressed JSON, beside and renamed; nothing where there is
    nothing. `read_answers` reads it back."""
    if any(answered.values()):
        # ASCII, so that any string comes back, also one that UTF-8 cannot hold.
        content = json.dumps(answered, ensure_ascii=True, separators=(",", ":"))
        write_bytes(path, gzip.compress(content.encode(), compresslevel=3, mtime=0))


def read_answers(path: Path) -> dict[str, dict[int, str]]:
    """Task -> document number -> answer, as `write_answers` wrote them; nothing without a file.

    Raises UserError where it is no such file.
    """
    try:
        most = _ROOM + _PACKED * path.stat().st_size
        if path.exists() and not path.is_file():
            raise OSError("it is no ordinary file")
        with gzip.open(path) as file:
            content = file.read(most + 1)
        _check_size(path, len(content))
        kept = json.loads(content)
        return {task: {int(n): str(text) for n, text in own.items()} for task, own in kept.items()}
    except FileNotFoundError:
        return {}
    except (OSError, EOFError, ValueError, AttributeError, RecursionError, zlib.error) as error:
        raise UserError(
            f"{path}: answers cannot be read ({type(error).__name__}: {error}); expected a file "
            "that write_answers made; remove it to do without"
        ) from error

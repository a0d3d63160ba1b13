"""Scores documents with a Python function of the user's own.

    def score(model, tokenizer, documents):
        return [...]    # one number per document; their mean is the metric

`model` is the live transformers model, which the function must leave as it is; `documents` are
the lines of a JSONL file, as Python values, in any selection and order. A document's number may
depend on nothing but the model and the document.
"""

import hashlib
import importlib
import importlib.util
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from evomerge.errors import CandidateError, UserError, did_you_mean
from evomerge.files import read_text
from evomerge.scoring.gradient import SmoothTerms
from evomerge.scoring.means import MeanScores, refuse_unknown
from evomerge.scoring.questions import Question
from evomerge.scoring.scorecard import DocumentScores, Scorecard
from evomerge.scoring.scorer import KINDS, Documents, Kind

_LOG = logging.getLogger(__name__)
_SEED = 1234  # of torch, at every call
_MOST = 1e100  # of a score: squares of more have no float

ScoreFunction = Callable[[Any, Any, list[Any]], Sequence[float]]
"""(model, tokenizer, documents) -> one number per document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTask:
    """A task that a function scores."""

    name: str
    metric: str
    """After the function: "score,none"."""
    function: ScoreFunction
    documents: tuple[str, ...]
    """Each a JSON text."""
    higher_is_better: bool = True


class OwnFunctions:
    """The scorer of tasks that functions score."""

    def __init__(self, tasks: Sequence[FunctionTask], tokenizer: PreTrainedTokenizerBase) -> None:
        self._tasks = {task.name: task for task in tasks}
        self._tokenizer = tokenizer

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self._tasks)

    def documents(self, task: str) -> tuple[str, ...]:
        """The lines of the task's file."""
        return self._tasks[task].documents

    def questions(self, task: str, documents: Sequence[int]) -> list[Question]:
        """Their lines: what is asked, the function alone knows."""
        return [Question(text=self._tasks[task].documents[number]) for number in documents]

    def objective(self, task: str) -> str:
        """The function's name, with the filter "none"."""
        return self._tasks[task].metric

    def smooth(self, task: str) -> None:
        """There is none."""

    def smooth_terms(self, model: nn.Module, documents: Documents, *, tokens: int) -> SmoothTerms:
        """None: functions have no smooth score."""
        return iter(())

    def start(self, model: nn.Module, kinds: AbstractSet[Kind] = KINDS) -> "FunctionScoring":
        """Begins to score the weights that `model` holds now; kinds: without "metric", no
        function is called."""
        return FunctionScoring(self._tasks, model, self._tokenizer, call="metric" in kinds)


class FunctionScoring:
    """The scoring of one candidate by functions."""

    def __init__(
        self,
        tasks: Mapping[str, FunctionTask],
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        call: bool,
    ) -> None:
        self._tasks = tasks
        self._model = model
        self._tokenizer = tokenizer
        self._call = call
        self._scores: dict[str, MeanScores] = {}
        self._seconds = 0.0

    def add(self, documents: Documents) -> dict[str, DocumentScores]:
        """Scores further documents; task -> its scores per document so far.

        Raises CandidateError, naming the task, where a function raises, or returns something
        other than one finite number per document; UserError for an unknown task or document, or
        one that was scored before.
        """
        start = time.perf_counter()
        refuse_unknown(documents, self._tasks)
        for name, numbers in documents.items():
            task = self._tasks[name]
            if name not in self._scores:
                metrics = {task.metric: task.higher_is_better} if self._call else {}
                self._scores[name] = MeanScores(name, len(task.documents), metrics)
            ordered = self._scores[name].wanted(numbers)
            values = self._values(task, ordered) if self._call else [None] * len(ordered)
            for number, value in zip(ordered, values, strict=True):
                found = {} if value is None else {task.metric: value}
                self._scores[name].add(number, found)
        self._seconds += time.perf_counter() - start
        return {name: scores.per_document() for name, scores in self._scores.items()}

    def scorecard(self) -> Scorecard:
        """The scores of all documents so far; all seconds count as the model's."""
        return Scorecard(
            metrics=tuple(m for scores in self._scores.values() for m in scores.metrics()),
            per_document={name: scores.per_document() for name, scores in self._scores.items()},
            seconds={"model": self._seconds, "metric": 0.0},
        )

    def _values(self, task: FunctionTask, numbers: Sequence[int]) -> list[float]:
        documents = [json.loads(task.documents[number]) for number in numbers]
        devices = {p.device.index for p in self._model.parameters() if p.device.type == "cuda"}
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=sorted(devices)):
                torch.manual_seed(_SEED)
                returned = task.function(self._model, self._tokenizer, documents)
                values = _numbers(returned)
        except CandidateError as error:
            raise CandidateError(f"task {task.name!r}: its function {error}") from None
        except (Exception, SystemExit) as error:
            _LOG.exception("task %r: its function raised", task.name)
            raise CandidateError(
                f"task {task.name!r}: its function raised {type(error).__name__}: {error}"
            ) from error
        if len(values) != len(documents):
            raise CandidateError(
                f"task {task.name!r}: its function returned {len(values)} values for "
                f"{len(documents)} documents; expected one for each"
            )
        for number, value in zip(numbers, values, strict=True):
            if not abs(value) <= _MOST:
                raise CandidateError(
                    f"task {task.name!r}: its function returned {value} for document {number}; "
                    f"expected a finite number, of {_MOST:g} at most"
                )
        return values


def _numbers(returned: Any) -> list[float]:
    """CandidateError for anything else than a sequence of numbers, such as the keys of a mapping or
    the letters of a text, which would count as scores."""
    if isinstance(returned, (str, bytes, Mapping, AbstractSet)) or not isinstance(
        returned, Iterable
    ):
        raise CandidateError(f"returned {_shown(returned)}; expected a list of numbers")
    values = []
    for value in returned:
        try:
            if isinstance(value, (str, bytes)):
                raise TypeError
            values.append(float(value))
        except OverflowError:  # an integer that no float holds
            values.append(math.inf)
        except (TypeError, ValueError):
            raise CandidateError(
                f"returned {_shown(value)} for a document; expected a number"
            ) from None
    return values


def _shown(value: Any) -> str:
    """Its type and, in short, what it is."""
    return f"{type(value).__name__} {value!r:.60}"


def load_function(path: str, folder: Path) -> ScoreFunction:
    """The function of "module:function": of a module in the folder, or of an installed package.

    A module in the folder is one file, which imports what is installed but no file beside it.
    Runs the module's code. Raises UserError where there is no such module or function, or the
    module cannot be imported.
    """
    module_name, _, function_name = path.partition(":")
    file = source_file(path, folder)
    try:
        beside = file == _file_beside(module_name, folder)
        module = _import_file(file) if beside else importlib.import_module(module_name)
    except Exception as error:
        _LOG.exception("%s cannot be imported", file)
        raise UserError(
            f"scorer {path}: {file} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [n for n, f in vars(module).items() if callable(f) and not n.startswith("_")]
        raise UserError(
            f"scorer {path}: {file} has no function {function_name!r}; "
            + did_you_mean(function_name, known)
        )
    found: ScoreFunction = function
    return found


def source_file(path: str, folder: Path) -> Path:
    """The file of a "module:function", in the folder or of an installed package; UserError where
    there is none. (To find a module within a package, Python runs the package's __init__.)"""
    module = path.partition(":")[0]
    file = _file_beside(module, folder)
    if file.is_file():
        return file
    try:
        specification = importlib.util.find_spec(module)
    except ImportError:
        specification = None
    if specification is None or not specification.has_location or not specification.origin:
        raise UserError(
            f"scorer {path}: there is neither a file {file} nor an installed module {module!r}; "
            "expected module:function, where module is a Python file beside the configuration, "
            "without .py"
        )
    return Path(specification.origin)


def read_documents(task: str, file: Path) -> tuple[str, ...]:
    """The lines of a JSONL file that are not blank; UserError where it cannot be read, is empty,
    or a line is not JSON."""
    try:
        lines = [line for line in read_text(file).split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"task {task!r}: {file} cannot be read: {error}") from error
    if not lines:
        raise UserError(f"task {task!r}: {file} is empty; expected a JSON document per line")
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"task {task!r}: {file}: document {number} is not JSON: {error}; expected a JSON "
                "document per line"
            ) from error
    return tuple(lines)


def _file_beside(module: str, folder: Path) -> Path:
    return folder.joinpath(*module.split(".")).with_suffix(".py")


def _import_file(file: Path) -> Any:
    """Under a name of its own, so that it neither hides nor is hidden by an installed module."""
    name = f"evomerge_scorer_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module

"""Tasks whose documents are prepared once and scored any number of times.

What comes from lm-eval (its tasks and instances) is handed in; this file only asks it.
"""

import json
import random
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

from evomerge.errors import CandidateError, UserError, did_you_mean
from evomerge.scoring.means import mean_metric, refuse_scored
from evomerge.scoring.scorecard import SMOOTH, DocumentScores, Metric

_RESAMPLES = 100

StandardError = Callable[[Any, int], Callable[[Sequence[Any]], float] | None]
"""lm-eval's stderr_for_metric: (aggregation, resamples) -> values -> standard error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest:
    """A task to score on, and how to ask it."""

    name: str
    """Of a task, group or tag."""
    folder: Path | None = None
    """Where its YAML file is; the task's relative data_files count from here. None: one of the
    tasks that come with lm-eval."""
    metric: str | None = None
    """What the search is to improve, such as "acc_norm"; None: the task's first metric."""
    filter: str | None = None
    """Which of the task's filters to read the metric after; None: its first."""
    num_fewshot: int | None = None
    """None: what the task says."""
    chat_template: bool = False
    """Put prompts into the tokenizer's chat template, examples as turns of their own."""
    system_instruction: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedDocument:
    """A document with its requests to the model, in order."""

    task: Any
    """The lm-eval task it belongs to: of a group, one of its subtasks."""
    requests: tuple[Any, ...]

    @property
    def text(self) -> str:
        """The document as JSON, the same for equal documents."""
        return json.dumps(self.requests[0].doc, sort_keys=True, ensure_ascii=False, default=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTask:
    """A task, or a group's subtasks one after the other, ready to be scored."""

    name: str
    objective: str
    """The "metric,filter" that the search is to improve."""
    metrics: tuple[str, ...]
    """The metrics that are reported."""
    tasks: tuple[Any, ...]
    documents: tuple[PreparedDocument, ...]


def prepare_task(request: TaskRequest, tasks: Sequence[Any]) -> PreparedTask:
    """Gathers the documents of lm-eval tasks whose requests are built.

    Several tasks (a group) become one: its metrics are those that all of them average over
    documents, and every document counts the same, as lm-eval weights a group by size.

    Raises UserError for a metric or filter that the task does not have.
    """
    for task in tasks:
        for name in ("doc_to_target", "doc_to_choice"):
            _remember(task, name)
    metrics, filters = _shared_metrics(request, tasks), _shared_filters(tasks)
    metric = _choose(request, "metric", request.metric, metrics)
    chosen_filter = _choose(request, "filter", request.filter, filters)
    documents = []
    for task in tasks:
        requests = defaultdict(list)
        for instance in task.instances:
            requests[instance.doc_id].append(instance)
        for _, instances in sorted(requests.items()):
            instances.sort(key=lambda instance: instance.idx)
            documents.append(PreparedDocument(task=task, requests=tuple(instances)))
    return PreparedTask(
        name=request.name,
        objective=f"{metric},{chosen_filter}",
        metrics=tuple(metrics),
        tasks=tuple(tasks),
        documents=tuple(documents),
    )


class FoundScores:
    """The scores of one task's documents, as they are found.

    Once a document is added, its requests may be asked again for another candidate.
    """

    def __init__(self, prepared: PreparedTask) -> None:
        self._prepared = prepared
        self._numbers: list[int] = []
        self._raw: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
        self._smooth: dict[int, float] = {}

    def refuse(self, numbers: Sequence[int]) -> None:
        """Raises UserError where a document is there already."""
        refuse_scored(self._prepared.name, numbers, self._numbers)

    def add(self, numbers: Sequence[int], *, metric: bool = True) -> None:
        """Further documents; with metric: from the answers (`resps`) that their requests hold."""
        self._numbers = sorted([*self._numbers, *numbers])
        if metric:
            for key, found in _raw_values(self._prepared, numbers).items():
                self._raw[key].update(found)

    def add_smooth(self, values: Mapping[int, float]) -> None:
        """Document number -> its smooth score."""
        self._smooth.update(values)

    def per_document(self) -> DocumentScores:
        """The scores of all documents so far."""
        values = {}
        for (name, filter_name), by_document in self._raw.items():
            aggregation = self._aggregation(name)
            if aggregation is not None:
                values[f"{name},{filter_name}"] = tuple(
                    _document_value(by_document[number], aggregation)
                    if number in by_document
                    else float("nan")
                    for number in self._numbers
                )
        if self._raw and self._prepared.objective not in values:
            raise UserError(
                f"task {self._prepared.name!r} gave no metric {self._prepared.objective!r}; "
                + did_you_mean(self._prepared.objective, values)
            )
        if self._smooth:
            values[SMOOTH] = tuple(self._smooth[number] for number in self._numbers)
        return DocumentScores(documents=tuple(self._numbers), values=values)

    def metrics(self, standard_error: StandardError) -> list[Metric]:
        """The task's metrics over all documents so far; CandidateError where one is NaN."""
        with warnings.catch_warnings():
            # A part of the documents may hold one label alone, of which sklearn's metrics warn.
            warnings.simplefilter("ignore", UserWarning)
            metrics = self._own_metrics(standard_error)
        known = [value for value in self._smooth.values() if value == value]
        return [*metrics, *([mean_metric(self._prepared.name, SMOOTH, known)] if known else [])]

    def _own_metrics(self, standard_error: StandardError) -> list[Metric]:
        metrics = []
        for (name, filter_name), by_document in self._raw.items():
            aggregation = self._aggregation(name)
            if aggregation is None:
                continue
            collected = list(by_document.values())
            value = float(aggregation(collected))
            if value != value:
                raise CandidateError(f"its metric {name},{filter_name} is NaN")
            metrics.append(
                Metric(
                    task=self._prepared.name,
                    name=f"{name},{filter_name}",
                    value=value,
                    standard_error=_standard_error(aggregation, collected, standard_error),
                    documents=len(collected),
                    higher_is_better=bool(self._prepared.tasks[0].higher_is_better()[name]),
                )
            )
        return metrics

    def _aggregation(self, name: str) -> Callable[[Sequence[Any]], float] | None:
        """None for what is not reported."""
        prepared = self._prepared
        if len(prepared.tasks) > 1 and name not in prepared.metrics:
            return None
        found: Callable[[Sequence[Any]], float] | None = prepared.tasks[0].aggregation().get(name)
        return found


def _raw_values(
    prepared: PreparedTask, numbers: Sequence[int]
) -> dict[tuple[str, str], dict[int, Any]]:
    """(metric, filter) -> document number -> what the task's process_results says of it."""
    by_task = defaultdict(list)
    for number in numbers:
        by_task[id(prepared.documents[number].task)].append(number)
    raw: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
    for own in by_task.values():
        documents = [prepared.documents[number] for number in own]
        task = documents[0].task
        task._instances = [request for document in documents for request in document.requests]
        task.apply_filters()
        for number, document in zip(own, documents, strict=True):
            for filter_name in document.requests[0].filtered_resps:
                results = [request.filtered_resps[filter_name] for request in document.requests]
                found = task.process_results(document.requests[0].doc, results)
                for metric, value in found.items():
                    raw[metric, filter_name][number] = value
    return raw


def _document_value(value: Any, aggregation: Callable[[Sequence[Any]], float]) -> float:
    """One document's score, in the metric's own unit and direction.

    For an average, the value itself. f1 and Matthews correlation say nothing about a single
    document: there, whether it was answered right. Otherwise (perplexities, BLEU) the metric
    of this document alone.
    """
    name = getattr(aggregation, "__name__", "")
    if name in ("mean", "nanmean", "median"):
        return float(value)
    if name in ("f1_score", "matthews_corrcoef"):
        gold, predicted = value
        return float(gold == predicted)
    return float(aggregation([value]))


def _standard_error(
    aggregation: Callable[[Sequence[Any]], float], values: Sequence[Any], known: StandardError
) -> float | None:
    """lm-eval's closed form for averages; a small bootstrap where lm-eval would run a large one;
    None where it has neither, or for a single document."""
    estimate = known(aggregation, 1)
    if estimate is None or len(values) < 2:
        return None
    if getattr(aggregation, "__name__", "") in ("mean", "acc_all"):
        return float(estimate(values))
    # lm-eval's own bootstrap starts a pool of processes and prints.
    generator = random.Random(0)
    samples = (generator.choices(values, k=len(values)) for _ in range(_RESAMPLES))
    return stdev(float(aggregation(sample)) for sample in samples)


def _shared_metrics(request: TaskRequest, tasks: Sequence[Any]) -> list[str]:
    if len(tasks) == 1:
        return list(tasks[0].aggregation())
    averaged = [
        {
            name
            for name, aggregation in task.aggregation().items()
            if getattr(aggregation, "__name__", "") == "mean"
        }
        for task in tasks
    ]
    shared = [name for name in tasks[0].aggregation() if all(name in names for names in averaged)]
    if not shared:
        names = ", ".join(sorted(task.task_name for task in tasks))
        raise UserError(
            f"group {request.name!r}: its subtasks have no metric in common that is an average "
            f"over documents; name the subtasks one by one instead: {names}"
        )
    return shared


def _shared_filters(tasks: Sequence[Any]) -> list[str]:
    names = [[one.name for one in task._filters] for task in tasks]
    return [name for name in names[0] if all(name in others for others in names)]


def _choose(request: TaskRequest, kind: str, wanted: str | None, known: Sequence[str]) -> str:
    if wanted is None and known:
        return known[0]
    if wanted is None or wanted not in known:
        raise UserError(
            f"task {request.name!r} has no {kind} {wanted!r}; " + did_you_mean(str(wanted), known)
        )
    return wanted


def _remember(task: Any, name: str) -> None:
    """Keeps what a method of the task says of a document: rendered once, not per candidate."""
    method = getattr(task, name, None)
    if method is None:
        return
    known: dict[int, tuple[Any, Any]] = {}

    def remembered(doc: Any, *others: Any, **named: Any) -> Any:
        if others or named:
            return method(doc, *others, **named)
        if id(doc) not in known:
            known[id(doc)] = (doc, method(doc))  # with the document, whose id stays taken
        return known[id(doc)][1]

    setattr(task, name, remembered)


def reset_answers(documents: Sequence[PreparedDocument]) -> None:
    """Forgets the last candidate's answers."""
    for document in documents:
        for request in document.requests:
            request.resps = []
            request.filtered_resps = {}

"""Scores that are means over documents: the numbers of one task, as they are found."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev

from evomerge.errors import UserError, did_you_mean
from evomerge.scoring.scorecard import DocumentScores, Metric


def mean_metric(
    task: str, name: str, values: Sequence[float], *, higher_is_better: bool = True
) -> Metric:
    """The mean of one value per document, with its standard error (None for a single one)."""
    return Metric(
        task=task,
        name=name,
        value=fmean(values),
        standard_error=stdev(values) / sqrt(len(values)) if len(values) > 1 else None,
        documents=len(values),
        higher_is_better=higher_is_better,
    )


def known_numbers(task: str, count: int, numbers: Sequence[int]) -> list[int]:
    """Ascending, each once; raises UserError for none, or for a number that none of the task's
    `count` documents has."""
    ordered = sorted(set(numbers))
    if not ordered:
        raise UserError(f"task {task!r}: no documents were asked for; leave it out")
    if ordered[0] < 0 or ordered[-1] >= count:
        raise UserError(
            f"task {task!r}: documents [{ordered[0]}] to [{ordered[-1]}] were asked for; "
            f"expected some of 0 to {count - 1}; has its data changed?"
        )
    return ordered


def refuse_unknown(tasks: Iterable[str], known: Collection[str]) -> None:
    """Raises UserError for a task that the scorer does not know."""
    for task in tasks:
        if task not in known:
            raise UserError(f"task {task!r} is unknown; {did_you_mean(task, known)}")


def refuse_scored(task: str, numbers: Sequence[int], scored: Sequence[int]) -> None:
    """Raises UserError where a document was scored before."""
    if again := set(numbers) & set(scored):
        raise UserError(
            f"task {task!r}: documents {sorted(again)[:5]} were scored before; expected each once"
        )


class MeanScores:
    """One task's scores, all of whose metrics are means over documents.

    metrics: "metric,filter" -> whether higher is better.
    """

    def __init__(self, task: str, count: int, metrics: Mapping[str, bool]) -> None:
        self._task = task
        self._count = count
        self._metrics = metrics
        self._found: dict[int, Mapping[str, float]] = {}

    def wanted(self, numbers: Sequence[int]) -> list[int]:
        """Ascending, each once; UserError for unknown ones, or for some that were scored before."""
        ordered = known_numbers(self._task, self._count, numbers)
        refuse_scored(self._task, ordered, list(self._found))
        return ordered

    def add(self, number: int, values: Mapping[str, float]) -> None:
        """One document's value of every metric."""
        self._found[number] = values

    def per_document(self) -> DocumentScores:
        """The scores of all documents so far."""
        numbers = sorted(self._found)
        values = {n: tuple(self._found[number][n] for number in numbers) for n in self._metrics}
        return DocumentScores(documents=tuple(numbers), values=values)

    def metrics(self) -> list[Metric]:
        """The means over all documents so far."""
        return [
            mean_metric(self._task, name, values, higher_is_better=self._metrics[name])
            for name, values in self.per_document().values.items()
        ]

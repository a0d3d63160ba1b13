"""Which answers a task's filter finds, and which it only has its fallback for.

What comes from lm-eval (its tasks, filters and instances) is handed in; this file only asks it.
"""

from collections.abc import Sequence
from typing import Any

from evomerge.scoring.tasks import PreparedDocument, PreparedTask


class Extraction:
    """Looks whether the filter that a task's objective is read after found the answers."""

    def __init__(self, prepared: PreparedTask) -> None:
        self._filter = prepared.objective.rpartition(",")[2]
        self._fallbacks: dict[int, list[Any]] = {}

    def found(self, documents: Sequence[PreparedDocument]) -> list[bool]:
        """Of every question that was generated for and filtered: whether an answer was found.

        Empty where the filter has no fallback: then whatever the model says is taken.
        """
        found = []
        for document in documents:
            for request in document.requests:
                fallbacks = self._of_task(document.task, request)
                if request.request_type == "generate_until" and fallbacks:
                    given = request.filtered_resps[self._filter]
                    found.append(given not in ([], *fallbacks))
        return found

    def _of_task(self, task: Any, request: Any) -> list[Any]:
        if id(task) not in self._fallbacks:
            chosen = next(each for each in task._filters if each.name == self._filter)
            self._fallbacks[id(task)] = _fallbacks(chosen, request)
        return self._fallbacks[id(task)]


def _fallbacks(ensemble: Any, request: Any) -> list[Any]:
    """What comes out of lm-eval's chain of filters where one of them finds nothing.

    Filters that look for something (regex, multi_choice_regex, regex_pos, and those of a task that
    are like them) have a `fallback`, which the filters behind them may change.
    """
    outcomes = []
    chain = [make() for make in ensemble.filters]
    for place, each in enumerate(chain):
        if hasattr(each, "fallback"):
            answers: Any = [[each.fallback] * (request.repeats or 1)]
            for later in chain[place + 1 :]:
                answers = later.apply(answers, [request.doc])
            outcomes.append(next(iter(answers)))
    return outcomes

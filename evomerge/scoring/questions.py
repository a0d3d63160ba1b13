"""What the documents of a task ask, and what a model answered, as people read it.

No score depends on these texts.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.scoring.tasks import PreparedDocument

ANSWER_LENGTH = 2000
"""Characters of an answer that are kept."""
CUT = "…"
"""Stands at the end of a text that was cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What one document asks."""

    text: str
    """Without few-shot examples, description and chat template. Where the choices are beginnings
    that share an end, that end; of a document that asks nothing, its own text."""
    choices: tuple[str, ...] = ()
    """Empty where there are none to choose from."""
    expected: str | None = None
    """The right choice, or the reference; several with " | " between. None where there is none."""


def cut(text: str, length: int) -> str:
    """The first `length` characters and a mark; a text that is not longer as it is.

    Half a surrogate pair, which no file in UTF-8 can hold, becomes its escape.
    """
    short = text if len(text) <= length else text[:length] + CUT
    return short.encode("utf-8", "backslashreplace").decode()


def question_of(document: PreparedDocument) -> Question:
    """What lm-eval asks about a document (doc_to_text), and what it expects."""
    task, doc = document.task, document.requests[0].doc
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return Question(text=str(task.doc_to_target(doc)))
    beginnings = task.OUTPUT_TYPE == "multiple_choice" and task.multiple_input
    return Question(
        text=str(task.doc_to_target(doc) if beginnings else task.doc_to_text(doc)),
        choices=tuple(_choices(document)),
        expected=" | ".join(_expected(document)) or None,
    )


def answer_of(document: PreparedDocument) -> str | None:
    """What the model answered, from what the document's requests hold: the generated text, before
    any filter, or the most probable choice, as `acc` takes it. None for other requests."""
    first = document.requests[0]
    if first.request_type == "generate_until":
        return cut(str(first.resps[0]), ANSWER_LENGTH)
    if document.task.OUTPUT_TYPE != "multiple_choice":
        return None
    choices = _choices(document)
    # Behind the choices' requests stand, for acc_mutual_info, those without a context.
    scores = [request.resps[0][0] for request in document.requests[: len(choices)]]
    return cut(choices[int(np.argmax(scores))], ANSWER_LENGTH)


def right_choices(document: PreparedDocument) -> list[int]:
    """Places of the right choices, as lm-eval's process_results finds them."""
    task, doc = document.task, document.requests[0].doc
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    choices = task.doc_to_choice(doc)
    places = gold if isinstance(gold, list) else [gold]
    places = [choices.index(p) if isinstance(p, str) and p in choices else p for p in places]
    return [place for place in places if isinstance(place, int) and 0 <= place < len(choices)]


def _choices(document: PreparedDocument) -> list[str]:
    """Also of tasks that let the model write its choice."""
    task = document.task
    if task.OUTPUT_TYPE != "multiple_choice" and not _names_choices(task):
        return []
    return [str(choice) for choice in task.doc_to_choice(document.requests[0].doc)]


def _names_choices(task: Any) -> bool:
    return getattr(task.config, "doc_to_choice", None) is not None


def _expected(document: PreparedDocument) -> list[str]:
    task, choices = document.task, _choices(document)
    if task.OUTPUT_TYPE == "multiple_choice":
        return [choices[place] for place in right_choices(document)]
    target = task.doc_to_target(document.requests[0].doc)
    targets = target if isinstance(target, list | tuple) else [target]
    return [
        choices[one] if isinstance(one, int) and 0 <= one < len(choices) else str(one)
        for one in targets
        if one is not None
    ]

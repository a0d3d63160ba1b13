"""The two sides of scoring_speed.py: evomerge, and lm-eval's own HFLM. Both score one live model
on the same folder of tasks, and say what they found in the same form.
"""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.harness import Harness
from evomerge.scoring.scorer import score_blocks
from evomerge.scoring.tasks import TaskRequest
from tests.benchmarks.measuring import now


class Ours:
    """All that this benchmark asks of evomerge."""

    def __init__(
        self,
        folder: Path,
        tasks: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        tokens: int | None,
        max_length: int,
    ) -> None:
        requests = [TaskRequest(name=task, folder=folder) for task in tasks]
        with quiet():
            self._harness = Harness(
                requests, tokenizer, budget=BatchBudget(tokens), max_length=max_length
            )
        self._documents = {task: range(len(self._harness.documents(task))) for task in tasks}

    def score(self, model: PreTrainedModel) -> None:
        self._card = score_blocks(self._harness, model, [self._documents], kinds={"metric"})

    @property
    def model_seconds(self) -> float:
        """Of the last call of `score`, in passes and decoding."""
        return self._card.seconds["model"]

    def outcome(self) -> "Outcome":
        """Of the last call of `score`. Answers to single requests are not part of the interface."""
        return Outcome(
            metrics={(m.task, m.name): m.value for m in self._card.metrics},
            answers={
                task: [
                    [
                        _answer(response)
                        for request in document.requests
                        for response in request.resps
                    ]
                    for document in self._harness._tasks[task].documents
                ]
                for task in self._documents
            },
        )


Answer = float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one side found."""

    metrics: Mapping[tuple[str, str], float]
    """(task, "metric,filter") -> its value over all documents."""
    answers: Mapping[str, Sequence[Sequence[Answer]]]
    """Task -> of each document, of each of its requests: the log-likelihood in nats, or the text
    that was generated."""


class Stock:
    """lm-eval's `simple_evaluate` with its HFLM around the live model.

    model_seconds: of the last call, those inside HFLM; the rest prepares tasks and prompts.
    """

    def __init__(
        self,
        folder: Path,
        tasks: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        batch: int,
        max_length: int,
    ) -> None:
        self._tasks = list(tasks)
        self.batch = batch
        self.model_seconds = 0.0
        with quiet():
            self._manager = TaskManager(include_path=str(folder), include_defaults=False)
            self._language_model = HFLM(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=batch,
                max_length=max_length,
                softmax_dtype="float32",
            )
        for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            method = getattr(self._language_model, name)
            setattr(self._language_model, name, self._timed(method, model.device))

    def score(self) -> None:
        self.model_seconds = 0.0
        with quiet():
            self._results = simple_evaluate(
                model=self._language_model,
                tasks=self._tasks,
                task_manager=self._manager,
                bootstrap_iters=0,
            )

    def outcome(self) -> Outcome:
        """Of the last call of `score`."""
        answers: dict[str, list[list[Answer]]] = {}
        for task, rows in self._results["samples"].items():
            by_document = {row["doc_id"]: row["resps"] for row in rows}
            answers[task] = [
                [_answer(response) for responses in by_document[number] for response in responses]
                for number in sorted(by_document)
            ]
        return Outcome(
            metrics={
                (task, name): value
                for task, found in self._results["results"].items()
                for name, value in found.items()
                if "," in name and "_stderr" not in name
            },
            answers=answers,
        )

    def _timed(self, method: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
        def timed(*arguments: Any, **settings: Any) -> Any:
            start = now(device)
            try:
                return method(*arguments, **settings)
            finally:
                self.model_seconds += now(device) - start

        return timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far two outcomes are apart."""

    likelihoods: tuple[float, ...] = field(repr=False)
    """Absolute differences of log-likelihoods in nats; empty where texts were generated."""
    equal_answers: int
    """Generated texts that are equal, letter by letter."""
    answers: int
    metrics_equal: bool

    @property
    def largest(self) -> float:
        return max(self.likelihoods, default=0.0)


def difference(left: Outcome, right: Outcome, task: str) -> Difference:
    """Of the same documents of a task; metrics count as equal within a millionth."""
    likelihoods, equal, answers = [], 0, 0
    for own, their in zip(left.answers[task], right.answers[task], strict=True):
        for mine, other in zip(own, their, strict=True):
            if isinstance(mine, str) or isinstance(other, str):
                answers += 1
                equal += mine == other
            else:
                likelihoods.append(abs(mine - other))
    own_metrics = {name: value for name, value in left.metrics.items() if name[0] == task}
    if not own_metrics:
        raise SystemExit(f"task {task} has no metric: nothing was compared")
    return Difference(
        likelihoods=tuple(likelihoods),
        equal_answers=equal,
        answers=answers,
        metrics_equal=all(
            abs(value - right.metrics[name]) <= 1e-6 * max(1.0, abs(value))
            for name, value in own_metrics.items()
        ),
    )


def together(differences: Sequence[Difference]) -> Difference:
    """Several as one."""
    return Difference(
        likelihoods=tuple(each for found in differences for each in found.likelihoods),
        equal_answers=sum(found.equal_answers for found in differences),
        answers=sum(found.answers for found in differences),
        metrics_equal=all(found.metrics_equal for found in differences),
    )


def quiet() -> ExitStack:
    """Without the libraries' notices and progress bars."""
    stack = ExitStack()
    stack.enter_context(redirect_stderr(io.StringIO()))
    stack.enter_context(redirect_stdout(io.StringIO()))
    for name in ("lm_eval", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return stack


def _answer(response: Any) -> Answer:
    """A log-likelihood comes with whether it is greedy."""
    found = response[0] if isinstance(response, tuple | list) else response
    return found if isinstance(found, str) else float(found)

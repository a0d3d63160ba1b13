"""Scores a live model on lm-eval's tasks, with lm-eval's numbers and without its overhead.

Tasks are loaded, their few-shot prompts drawn and their requests built once, over all documents,
in the way and with the seeds of lm-eval's own `simple_evaluate`. A candidate then costs forward
passes and little else, and a subset of documents has the prompts that it has in the full run.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.metrics import stderr_for_metric
from lm_eval.tasks import TaskManager
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evomerge.errors import CandidateError, UserError, did_you_mean
from evomerge.scoring.language_model import LanguageModel
from evomerge.scoring.loading import load_tasks, refuse_code
from evomerge.scoring.scorecard import Scorecard
from evomerge.scoring.tasks import (
    PreparedDocument,
    PreparedTask,
    TaskRequest,
    collect_scores,
    known_numbers,
    prepare_task,
    reset_answers,
)


class Harness:
    """The scorer that runs lm-eval's tasks.

    batch_size: texts per forward pass, the same for all candidates, because the last digits of
    bfloat16 results depend on it. max_length: tokens of prompt and answer together; None: what
    the model's config says. seed: of the few-shot examples; 1234 is lm-eval's. allow_code: run
    Python code that a task in a local folder brings along, and tasks that run the model's answers
    as code.

    Raises UserError where a task cannot be found, loaded or prepared, or has no such metric.
    """

    def __init__(
        self,
        requests: Sequence[TaskRequest],
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int | None = None,
        seed: int = 1234,
        allow_code: bool = False,
    ) -> None:
        names = [request.name for request in requests]
        if not names or len(set(names)) < len(names):
            raise UserError(f"tasks are {names}; expected at least one, and each only once")
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._max_length = max_length
        self._language_model: LanguageModel | None = None
        managers: dict[Path | None, TaskManager] = {}
        self._tasks: dict[str, PreparedTask] = {}
        for request in requests:
            if request.folder not in managers:
                managers[request.folder] = _task_manager(request.folder, allow_code)
            tasks = load_tasks(
                request,
                managers[request.folder],
                tokenizer,
                seed=seed,
                allow_code=allow_code,
            )
            self._tasks[request.name] = prepare_task(request, tasks)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, as requested."""
        return tuple(self._tasks)

    def objective(self, task: str) -> str:
        """The "metric,filter" of that task which the search is to improve."""
        return self._tasks[task].objective

    def documents(self, task: str) -> list[str]:
        """The text (JSON) of each document of the task; a document's number is its place."""
        return [document.text for document in self._tasks[task].documents]

    def score(self, model: nn.Module, documents: Mapping[str, Sequence[int]]) -> Scorecard:
        """Scores the weights that `model` holds now on those documents of each task.

        documents: task -> document numbers, in any order; tasks that are left out are not scored.
        Raises CandidateError, naming the task, where a log-likelihood or metric is NaN or memory
        runs out.
        """
        if not isinstance(model, PreTrainedModel):
            raise UserError(f"the model is a {type(model).__name__}; expected one of transformers")
        language_model = self._language_model
        if language_model is None or language_model.model is not model:
            language_model = self._language_model = LanguageModel(
                model,
                self._tokenizer,
                batch_size=self._batch_size,
                max_length=self._max_length,
            )
        metrics, per_document = [], {}
        for name, numbers in documents.items():
            if name not in self._tasks:
                raise UserError(f"task {name!r} is unknown; " + did_you_mean(name, self._tasks))
            prepared = self._tasks[name]
            ordered = known_numbers(prepared, numbers)
            try:
                _answer([prepared.documents[number] for number in ordered], language_model)
                found, per_document[name] = collect_scores(prepared, ordered, stderr_for_metric)
            except (CandidateError, UserError) as error:
                raise type(error)(f"task {name!r}: {error}") from error
            metrics += found
        return Scorecard(metrics=tuple(metrics), per_document=per_document)


def _answer(documents: Sequence[PreparedDocument], model: LanguageModel) -> None:
    """Has the model answer all requests of the documents; the answers stay in the requests."""
    reset_answers(documents)
    methods: dict[str, Callable[[list[Any]], Sequence[Any]]] = {
        "loglikelihood": model.log_likelihoods,
        "loglikelihood_rolling": lambda calls: model.rolling_log_likelihoods([c[0] for c in calls]),
        "generate_until": model.generate,
    }
    for kind, method in methods.items():
        requests = [
            request
            for document in documents
            for request in document.requests
            if request.request_type == kind
            for _ in range(request.repeats or 1)
        ]
        answers = method([request.args for request in requests]) if requests else []
        for request, answer in zip(requests, answers, strict=True):
            request.resps.append(answer)


def _task_manager(folder: Path | None, allow_code: bool) -> TaskManager:
    """Knows the tasks of a folder, or (20 s of reading) those that come with lm-eval."""
    if folder is None:
        return TaskManager()
    if not folder.is_dir():
        raise UserError(f"task folder {folder} is not there; expected a folder with YAML files")
    if not allow_code:
        for path in sorted(folder.glob("**/*.yaml")):
            refuse_code(path)
    return TaskManager(include_path=str(folder.resolve()), include_defaults=False)

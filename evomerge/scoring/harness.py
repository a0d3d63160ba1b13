"""Scores a live model on lm-eval's tasks, with lm-eval's numbers and without its overhead.

Tasks are loaded, their few-shot prompts drawn and their requests built once, over all documents,
in the way and with the seeds of lm-eval's own `simple_evaluate`. A candidate then costs forward
passes and little else, and a subset of documents has the prompts that it has in the full run.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from lm_eval.api.metrics import stderr_for_metric
from lm_eval.tasks import TaskManager
from torch import nn
from transformers import PreTrainedTokenizerBase

from evomerge.errors import CandidateError, UserError
from evomerge.scoring.answers import Generated, examine
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.extraction import Extraction
from evomerge.scoring.generator import Generator
from evomerge.scoring.gradient import Differentiable, SmoothTerms
from evomerge.scoring.kept_tokens import KeptTokens
from evomerge.scoring.language_model import LanguageModel
from evomerge.scoring.loading import load_tasks, public_test_set
from evomerge.scoring.means import known_numbers, refuse_unknown
from evomerge.scoring.questions import Question, answer_of, question_of
from evomerge.scoring.sandbox import use_sandbox
from evomerge.scoring.scorecard import SMOOTH, DocumentScores, Scorecard
from evomerge.scoring.scorer import KINDS, Documents, Kind
from evomerge.scoring.sharing import LanguageModels
from evomerge.scoring.smooth import SmoothScores, TextPair
from evomerge.scoring.task_names import built_in_tasks
from evomerge.scoring.task_safety import check_folder
from evomerge.scoring.tasks import (
    FoundScores,
    PreparedTask,
    TaskRequest,
    prepare_task,
    reset_answers,
)

References = dict[TextPair, tuple[float, bool]]
"""Context and continuation -> log-probability in nats, and whether greedy decoding says it."""


class Harness:
    """The scorer that runs lm-eval's tasks.

    budget: how much a forward pass takes. max_length: tokens of prompt and answer together; None:
    what the model's config says. seed: of the few-shot examples; 1234 is lm-eval's. allow_code: run
    Python code that a task in a local folder brings along, and tasks that run the model's answers
    as code. generator: what decodes greedily; None: the live model itself.

    Raises UserError where a task cannot be found, loaded or prepared, or has no such metric.
    """

    def __init__(
        self,
        requests: Sequence[TaskRequest],
        tokenizer: PreTrainedTokenizerBase,
        *,
        budget: BatchBudget,
        max_length: int | None = None,
        seed: int = 1234,
        allow_code: bool = False,
        generator: Generator | None = None,
    ) -> None:
        names = [request.name for request in requests]
        if not names or len(set(names)) < len(names):
            raise UserError(f"tasks are {names}; expected at least one, and each only once")
        self.language_models = LanguageModels(
            tokenizer, budget=budget, max_length=max_length, generator=generator
        )
        """That of the live model; other scorers may share it."""
        self.published: dict[str, str] = {}
        """Task -> the public test set that its documents are from, in words."""
        self._kept_tokens: KeptTokens | None = None
        self._kept_names: dict[str, str] = {}
        managers: dict[Path | None, TaskManager] = {}
        self._tasks: dict[str, PreparedTask] = {}
        self._smooth: dict[str, SmoothScores] = {}
        self._extractions: dict[str, Extraction] = {}
        for request in requests:
            if request.folder not in managers:
                managers[request.folder] = _task_manager(request.folder, allow_code)
            tasks, kept_name = load_tasks(
                request,
                managers[request.folder],
                tokenizer,
                seed=seed,
                allow_code=allow_code,
            )
            self._tasks[request.name] = prepare_task(request, tasks)
            self._extractions[request.name] = Extraction(self._tasks[request.name])
            if (words := public_test_set(request, tasks)) is not None:
                self.published[request.name] = words
            if kept_name is not None:
                self._kept_names[request.name] = kept_name
            self._smooth[request.name] = SmoothScores(
                self._tasks[request.name],
                chat_template=request.chat_template,
                end_of_text=str(tokenizer.eos_token or ""),
            )

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

    def questions(self, task: str, documents: Sequence[int]) -> list[Question]:
        """What lm-eval asks about these documents, and what it expects."""
        return [question_of(self._tasks[task].documents[number]) for number in documents]

    def smooth(self, task: str) -> str | None:
        """The name of its smooth metric; None where its documents have no reference."""
        return SMOOTH if self._smooth[task].available else None

    def start(self, model: nn.Module, kinds: AbstractSet[Kind] = KINDS) -> "HarnessScoring":
        """Begins to score the weights that `model` holds now.

        kinds: without "metric", no answer is generated; without "smooth", no reference is read.
        """
        language_model = self.language_models.start(model)
        if (
            self._kept_tokens is None
            or self._kept_tokens.memory is not language_model.encoder.memory
        ):
            self._kept_tokens = self._read_tokens(language_model)
        return HarnessScoring(
            self._tasks,
            self._smooth,
            self._extractions,
            language_model,
            kinds,
            kept_tokens=self._kept_tokens,
        )

    def smooth_terms(self, model: nn.Module, documents: Documents, *, tokens: int) -> SmoothTerms:
        """See `Scorer`."""
        language_model = self.language_models.start(model)
        found = []
        for name, numbers in documents.items():
            smooth = self._smooth[name]
            for number in numbers:
                texts = smooth.references(number) or tuple(
                    request.args for request in self._tasks[name].documents[number].requests
                )
                counts = [language_model.encoder.count(*text) for text in texts]
                score = smooth.differentiable(number, counts)
                if score is None:
                    continue
                encoded = tuple(language_model.encoder.pairs(*text) for text in texts)
                found.append(Differentiable(place=(name, number), texts=encoded, score=score))
        return language_model.smooth_terms(found, tokens=tokens)

    def _read_tokens(self, model: LanguageModel) -> KeptTokens:
        tasks = {
            kept_name: [
                one for document in self._tasks[name].documents for one in document.requests
            ]
            for name, kept_name in self._kept_names.items()
        }
        return KeptTokens(model.encoder.memory, tasks, model.encoder.settings)


class HarnessScoring:
    """The scoring of one candidate on lm-eval's tasks."""

    def __init__(
        self,
        tasks: Mapping[str, PreparedTask],
        smooth: Mapping[str, SmoothScores],
        extractions: Mapping[str, Extraction],
        model: LanguageModel,
        kinds: AbstractSet[Kind],
        *,
        kept_tokens: KeptTokens | None = None,
    ) -> None:
        self._tasks = tasks
        self._kept_tokens = kept_tokens
        self._smooth = smooth
        self._model = model
        self._kinds = kinds
        self._found: dict[str, FoundScores] = {}
        self._per_document: dict[str, DocumentScores] = {}
        self._extractions = extractions
        self._generated: dict[str, list[Generated]] = defaultdict(list)
        self._extracted: dict[str, list[bool]] = defaultdict(list)
        self._answered: dict[str, dict[int, str]] = defaultdict(dict)
        self._seconds = 0.0
        self._in_model = 0.0

    def add(self, documents: Documents) -> dict[str, DocumentScores]:
        """Scores further documents; task -> its scores per document so far.

        Raises CandidateError, naming the tasks, where a log-likelihood or metric is NaN or memory
        runs out; UserError for an unknown task or document, or one that was scored before.
        """
        start, before = time.perf_counter(), self._model.seconds
        refuse_unknown(documents, self._tasks)
        ordered = {
            name: known_numbers(name, len(self._tasks[name].documents), numbers)
            for name, numbers in documents.items()
        }
        for name, numbers in ordered.items():
            self._found.setdefault(name, FoundScores(self._tasks[name])).refuse(numbers)
        try:
            references = self._answer(ordered)
            for name, numbers in ordered.items():
                self._found[name].add(numbers, metric=self._metric_wanted(name))
                if self._metric_wanted(name):
                    own = [self._tasks[name].documents[number] for number in numbers]
                    self._extracted[name] += self._extractions[name].found(own)
                    for number, document in zip(numbers, own, strict=True):
                        if (answer := answer_of(document)) is not None:
                            self._answered[name][number] = answer
                if "smooth" in self._kinds and self._smooth[name].available:
                    self._found[name].add_smooth(self._smooth_values(name, numbers, references))
                self._per_document[name] = self._found[name].per_document()
        except (CandidateError, UserError) as error:
            names = ", ".join(map(repr, documents))
            noun = "task" if len(documents) == 1 else "tasks"
            raise type(error)(f"{noun} {names}: {error}") from error
        if self._kept_tokens is not None:
            self._kept_tokens.keep()
        self._seconds += time.perf_counter() - start
        self._in_model += self._model.seconds - before
        return dict(self._per_document)

    def scorecard(self) -> Scorecard:
        """The scores of all documents so far."""
        start = time.perf_counter()
        metrics = [m for scores in self._found.values() for m in scores.metrics(stderr_for_metric)]
        total, model = self._seconds + time.perf_counter() - start, self._in_model
        return Scorecard(
            metrics=tuple(metrics),
            per_document=dict(self._per_document),
            answers={n: examine(own, self._extracted[n]) for n, own in self._generated.items()},
            answered={name: dict(own) for name, own in self._answered.items()},
            seconds={"model": model, "metric": total - model},
            remarks=self._model.remarks,
        )

    def _metric_wanted(self, name: str) -> bool:
        """Also where nothing has to be generated for it: then it costs next to nothing."""
        if "metric" in self._kinds:
            return True
        documents = self._tasks[name].documents
        return bool(documents[0].requests[0].request_type != "generate_until")

    def _answer(self, documents: Mapping[str, Sequence[int]]) -> References:
        """Has the model answer all requests of the documents; the answers stay in the requests,
        those to references are returned."""
        asked: dict[str, list[Any]] = {"generate_until": [], "loglikelihood_rolling": []}
        asked["loglikelihood"] = []
        for name, numbers in documents.items():
            if not self._metric_wanted(name):
                continue
            own = [self._tasks[name].documents[number] for number in numbers]
            reset_answers(own)
            for document in own:
                for request in document.requests:
                    asked[request.request_type] += [request] * (request.repeats or 1)
        pairs = [request.args for request in asked["loglikelihood"]]
        count = len(pairs)
        if "smooth" in self._kinds:
            # Together with the others, so that batches are full.
            for name, numbers in documents.items():
                pairs += [pair for n in numbers for pair in self._smooth[name].references(n)]
        found = self._model.log_likelihoods(pairs)
        texts = [request.args[0] for request in asked["loglikelihood_rolling"]]
        prompts = [request.args for request in asked["generate_until"]]
        generated = self._model.generate(prompts)
        self._keep_generated(documents, zip(asked["generate_until"], generated, strict=True))
        answers: list[tuple[str, Sequence[Any]]] = [
            ("loglikelihood", found[:count]),
            ("loglikelihood_rolling", self._model.rolling_log_likelihoods(texts)),
            ("generate_until", [answer.text for answer in generated]),
        ]
        for kind, own_answers in answers:
            for request, answer in zip(asked[kind], own_answers, strict=True):
                request.resps.append(answer)
        return dict(zip(pairs[count:], found[count:], strict=True))

    def _keep_generated(
        self, documents: Mapping[str, Sequence[int]], generated: Iterable[tuple[Any, Generated]]
    ) -> None:
        owners = {
            id(request): name
            for name, numbers in documents.items()
            for number in numbers
            for request in self._tasks[name].documents[number].requests
        }
        for request, answer in generated:
            self._generated[owners[id(request)]].append(answer)

    def _smooth_values(
        self, name: str, numbers: Sequence[int], references: References
    ) -> dict[int, float]:
        smooth, model, values = self._smooth[name], self._model, {}
        for number in numbers:
            pairs = smooth.references(number)
            if pairs:
                scores = [references[pair][0] for pair in pairs]
                tokens = [model.encoder.count(*pair) for pair in pairs]
            else:
                requests = self._tasks[name].documents[number].requests
                resps = [request.resps[0] for request in requests]
                scores = [r[0] if isinstance(r, tuple) else r for r in resps]
                tokens = [model.encoder.count(*request.args) for request in requests]
            values[number] = smooth.value(number, scores, tokens)
        return values


def _task_manager(folder: Path | None, allow_code: bool) -> TaskManager:
    """Knows the tasks of a folder, or those that come with lm-eval."""
    use_sandbox()
    if folder is None:
        return built_in_tasks()
    if not folder.is_dir():
        raise UserError(f"task folder {folder} is not there; expected a folder with YAML files")
    if not allow_code:
        check_folder(folder)
    try:
        return TaskManager(include_path=str(folder.resolve()), include_defaults=False)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"task folder {folder}: lm-eval cannot read the names of its tasks: {error}; expected "
            "`task`, `group` and `tag` to be names"
        ) from error

"""Loads lm-eval's tasks as lm-eval does, and says what is wrong with one that cannot be loaded."""

import difflib
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import jinja2
import numpy as np
import torch
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from transformers import PreTrainedTokenizerBase

from evomerge.errors import UserError, did_you_mean
from evomerge.scoring.fingerprints import NotKept, combine, fingerprint_tokenizer
from evomerge.scoring.kept_requests import give_requests
from evomerge.scoring.tasks import TaskRequest

_LOG = logging.getLogger(__name__)
# What simple_evaluate seeds before it loads tasks, some of which shuffle their documents.
_PYTHON_SEED, _NUMPY_SEED, _TORCH_SEED = 0, 1234, 1234
_NO_CONNECTION = {
    *("ConnectionError", "ConnectError", "ConnectTimeout", "ReadTimeout", "TimeoutException"),
    *("ProxyError", "MaxRetryError", "gaierror", "OfflineModeIsEnabled", "LocalEntryNotFoundError"),
}  # names of exceptions of requests, urllib3, httpx, socket and huggingface_hub


def load_tasks(
    request: TaskRequest,
    manager: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    allow_code: bool,
) -> tuple[list[Any], str | None]:
    """The lm-eval tasks of a request, with the requests to the model of all documents; and the
    name under which these are kept, None where they are not.

    manager: lm-eval's TaskManager that knows the request's folder. Several tasks only where the
    request names a group or tag. Raises UserError where something is wrong with the task.
    """
    if request.name not in manager.all_tasks:
        raise _unknown(request, manager.all_tasks)
    if request.chat_template and tokenizer.chat_template is None:
        raise UserError(
            f"task {request.name!r} asks for the chat template, but the tokenizer has none; "
            "set chat_template: false, or use a tokenizer with a template"
        )
    with ExitStack() as stack:
        if request.folder is not None:
            stack.enter_context(chdir(request.folder))
        stack.enter_context(_lm_eval_seeds())
        # Progress bars that cannot be switched off.
        stack.enter_context(redirect_stderr(StringIO()))
        try:
            loaded = manager.load([request.name])
            tasks = list(loaded["tasks"].values())
            _check_groups(request, loaded["groups"].values(), tasks)
            names = []
            for task in tasks:
                _check(request, task, allow_code)
                names.append(_build(request, task, tokenizer, seed))
        except UserError:
            raise
        except Exception as error:
            raise _not_loaded(request, error) from error
    kept = [name for name in names if name is not None]
    return tasks, combine(*kept) if len(kept) == len(names) else None


def public_test_set(request: TaskRequest, tasks: Sequence[Any]) -> str | None:
    """In words, the public test set that the documents of a request are from; None: of none.

    That is every task that comes with lm-eval, and one of a local folder whose documents are the
    test split of a data set on the hub.
    """
    if request.folder is None:
        return "a task that comes with lm-eval"
    for task in tasks:
        source = str(task.config.dataset_path or "")
        local = source in _PACKAGED_DATASETS_MODULES or (request.folder / source).exists()
        if source and not local and task.has_test_docs():
            return f"{source}, split {task.config.test_split}"
    return None


def _check_groups(request: TaskRequest, groups: Iterable[Any], tasks: Sequence[Any]) -> None:
    """Refuses groups that lm-eval does not average over documents, as this house does."""
    for group in groups:
        for metric in group.aggregate_metric_list or []:
            if not metric.weight_by_size:
                names = ", ".join(task.task_name for task in tasks)
                raise UserError(
                    f"group {request.name!r}: lm-eval averages {metric.metric!r} over subtasks, "
                    "not over documents; name the subtasks one by one instead: " + names
                )


def _check(request: TaskRequest, task: Any, allow_code: bool) -> None:
    name = task.task_name
    if getattr(task, "UNSAFE_CODE", False) and not allow_code:
        raise UserError(
            f"task {name!r} runs the model's answers as code; if you want that on this machine, "
            "allow code (--allow-code, or allow_code: true)"
        )
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"task {name!r} needs images or sound; expected a task of text")
    fixed = task.get_config("num_fewshot")
    if request.num_fewshot and fixed == 0:
        raise UserError(
            f"task {name!r}: num_fewshot is {request.num_fewshot}, but the task's file fixes it at "
            "0, which lm-eval obeys; leave num_fewshot out, or change the task's file"
        )


def _build(
    request: TaskRequest, task: Any, tokenizer: PreTrainedTokenizerBase, seed: int
) -> str | None:
    """The requests of all documents: those that are kept, or built in lm-eval's order of seeding
    and drawing examples. The name under which they are kept."""
    shots = task.get_config("num_fewshot") if request.num_fewshot is None else request.num_fewshot
    task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=seed)

    def build() -> None:
        task.build_all_requests(
            system_instruction=request.system_instruction,
            apply_chat_template=request.chat_template,
            fewshot_as_multiturn=request.chat_template,
            chat_template=_chat_template(tokenizer) if request.chat_template else None,
            tokenizer_name=tokenizer.name_or_path,
        )

    try:
        rules = fingerprint_tokenizer(tokenizer)
    except NotKept as reason:
        _LOG.info("task %r: its requests are built at each start, for %s", request.name, reason)
        build()
        return None
    asked = {
        "tokenizer": rules,
        "seed": seed,
        "chat_template": request.chat_template,
        "system_instruction": request.system_instruction,
    }
    return give_requests(task, build, asked)


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> Callable[..., str]:
    """What lm-eval's HFLM.apply_chat_template does, before there is a model."""

    def render(chat: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        def apply(turns: list[dict[str, str]]) -> str:
            text = tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
            return str(text)

        try:
            return apply(chat)
        except jinja2.exceptions.TemplateError as error:
            _LOG.warning("The chat template refuses a system turn, which is left out: %s", error)
            return apply([turn for turn in chat if turn["role"] != "system"])

    return render


@contextmanager
def _lm_eval_seeds() -> Iterator[None]:
    """Global random states as simple_evaluate sets them; put back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(_PYTHON_SEED)
        np.random.seed(_NUMPY_SEED)
        torch.manual_seed(_TORCH_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _unknown(request: TaskRequest, known: Sequence[str]) -> UserError:
    if request.folder is None:
        near = difflib.get_close_matches(request.name, known, n=5)
        hint = did_you_mean(request.name, near) if near else "`lm_eval ls tasks` lists them"
        return UserError(
            f"task {request.name!r} is not one of lm-eval's {len(known)} tasks; {hint}; a task of "
            "your own needs its folder"
        )
    return UserError(
        f"task {request.name!r} is not in {request.folder}; "
        + did_you_mean(request.name, known)
        + "; for a task that comes with lm-eval, leave the folder out"
    )


def _not_loaded(request: TaskRequest, error: Exception) -> UserError:
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    first_line = (str(error).splitlines() or [""])[0]
    if kinds & _NO_CONNECTION:
        return UserError(
            f"task {request.name!r}: its data cannot be downloaded, for there is no connection to "
            f"the Hugging Face hub ({type(error).__name__}: {first_line}); connect once to fill "
            "the cache, or give the task local files"
        )
    return UserError(
        f"task {request.name!r} cannot be loaded: {type(error).__name__}: {first_line}; expected "
        "a task that lm-eval itself can run; check its YAML file and data"
    )

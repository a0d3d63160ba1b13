"""From the tasks of a configuration to the scorer of all of them."""

import hashlib
from pathlib import Path
from typing import Any

from evomerge.config import LoadedConfig
from evomerge.config_tasks import BITS_PER_BYTE, LM_EVAL, OWN_FUNCTION, TaskConfig
from evomerge.errors import UserError
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.bits_per_byte import BitsPerByte
from evomerge.scoring.generator import Generator
from evomerge.scoring.harness import Harness
from evomerge.scoring.own_function import (
    FunctionTask,
    OwnFunctions,
    load_function,
    read_documents,
    source_file,
)
from evomerge.scoring.scorer import Scorer
from evomerge.scoring.several import Scorers
from evomerge.scoring.sharing import LanguageModels
from evomerge.scoring.tasks import TaskRequest


def scorer_of(loaded: LoadedConfig, tokenizer: Any, budget: BatchBudget) -> Scorer:
    """Scores all tasks of the configuration; lm-eval's are loaded only where there are some.

    budget: how much a forward pass takes.
    """
    kinds = {task.kind for task in tasks_of(loaded).values()}
    parts: list[Scorer] = []
    language_models = LanguageModels(tokenizer, budget=budget)
    if LM_EVAL in kinds:
        harness = Harness(
            requests(loaded),
            tokenizer,
            budget=budget,
            allow_code=loaded.config.allow_code,
            generator=_generator(loaded, tokenizer),
        )
        parts.append(harness)
        language_models = harness.language_models
    if BITS_PER_BYTE in kinds:
        parts.append(BitsPerByte(_files(loaded), language_models))
    if OWN_FUNCTION in kinds:
        parts.append(OwnFunctions(_function_tasks(loaded), tokenizer))
    return parts[0] if len(parts) == 1 else Scorers(parts, order=list(tasks_of(loaded)))


def tasks_of(loaded: LoadedConfig, kind: str | None = None) -> dict[str, TaskConfig]:
    """Name -> the task; all, or those of one kind of scorer."""
    tasks = {name: task or TaskConfig() for name, task in loaded.config.tasks.items()}
    return {name: task for name, task in tasks.items() if kind in (None, task.kind)}


def published(scorer: Scorer) -> dict[str, str]:
    """Task -> the public test set that its documents are from, in words; without the others."""
    parts = scorer.parts if isinstance(scorer, Scorers) else (scorer,)
    own = [part.published for part in parts if isinstance(part, Harness)]
    return {task: words for found in own for task, words in found.items()}


def requests(loaded: LoadedConfig) -> list[TaskRequest]:
    """What is asked of lm-eval."""
    return [
        TaskRequest(
            name=name,
            folder=None if task.folder is None else loaded.folder / task.folder,
            metric=task.metric,
            filter=task.filter,
            num_fewshot=task.num_fewshot,
            chat_template=task.chat_template,
            system_instruction=task.system_instruction,
        )
        for name, task in tasks_of(loaded, LM_EVAL).items()
    ]


def sources(loaded: LoadedConfig) -> dict[str, str]:
    """Task -> hash of the file that holds the function which scores it."""
    files = {
        name: source_file(task.scorer or "", loaded.folder)
        for name, task in tasks_of(loaded, OWN_FUNCTION).items()
    }
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def _generator(loaded: LoadedConfig, tokenizer: Any) -> Generator | None:
    if loaded.config.generation == "own":
        return None
    from evomerge.scoring.vllm_generation import VllmGenerator

    return VllmGenerator(tokenizer)


def _files(loaded: LoadedConfig) -> dict[str, Path]:
    tasks = tasks_of(loaded, BITS_PER_BYTE)
    return {name: loaded.folder / (task.file or Path()) for name, task in tasks.items()}


def _function_tasks(loaded: LoadedConfig) -> list[FunctionTask]:
    tasks = tasks_of(loaded, OWN_FUNCTION)
    if not loaded.config.allow_code:
        raise UserError(
            "\n".join(
                f"{loaded.file}: tasks.{name}.scorer: {task.scorer} would run Python code; if you "
                "trust it, allow code (--allow-code, or allow_code: true)"
                for name, task in tasks.items()
            )
        )
    return [
        FunctionTask(
            name=name,
            metric=f"{(task.scorer or '').partition(':')[2]},none",
            function=load_function(task.scorer or "", loaded.folder),
            documents=read_documents(name, loaded.folder / (task.documents or Path())),
            higher_is_better=task.higher_is_better is not False,
        )
        for name, task in tasks.items()
    ]

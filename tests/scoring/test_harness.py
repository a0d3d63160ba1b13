"""The harness against stock lm-eval on the same model: document by document."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from evomerge.scoring.harness import Harness
from evomerge.scoring.tasks import TaskRequest

TASKS = ("choice", "letter", "cloze", "text", "answer", "counted")


@pytest.fixture
def stock(folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(model, task, **settings of simple_evaluate) -> lm-eval's own results."""

    def run(model: Any, task: str, batch_size: int = 8, **settings: Any) -> Any:
        monkeypatch.chdir(folder)
        language_model = HFLM(
            pretrained=model, tokenizer=tokenizer, softmax_dtype="float32", batch_size=batch_size
        )
        return simple_evaluate(
            model=language_model,
            tasks=[task],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            log_samples=True,
            bootstrap_iters=2,
            **settings,
        )

    return run


@pytest.fixture
def harness(folder: Path, tokenizer: Any) -> Harness:
    requests = [TaskRequest(name=name, folder=folder) for name in TASKS]
    return Harness(requests, tokenizer, batch_size=8)


def everything(harness: Harness) -> dict[str, range]:
    return {name: range(len(harness.documents(name))) for name in harness.tasks}


def test_equals_stock(harness: Harness, model: Any, stock: Any) -> None:
    card = harness.score(model, everything(harness))
    for task in TASKS:
        result = stock(model, task)
        for metric in card.metrics:
            if metric.task == task:
                print(
                    task,
                    metric.name,
                    metric.value,
                    result["results"][task][metric.name],
                    metric.standard_error,
                )
                assert metric.value == pytest.approx(result["results"][task][metric.name], rel=1e-5)

"""Out of device memory where torch raises it: merging, scoring, the gradient, the holdout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge import search
from evomerge.merging import workspace
from evomerge.merging.workspace import Workspace
from evomerge.report import read_run
from evomerge.scoring import token_model

Small = Callable[..., Path]
Faulty = Callable[..., Path]


def test_in_merging(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    merge_job = workspace.merge_job

    def scarce(job: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        if job.method is not None and job.method.name == "ties":
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return merge_job(job, *arguments, **options)

    monkeypatch.setattr(workspace, "merge_job", scarce)
    outcome = search(small("early_stopping: false\nguide: none\n", trials=10))
    report = read_run(outcome.folder)
    failures = {record.baseline: record.failure for record in report.records if record.failure}
    assert failures == {"ties": "out of memory while merging: tried to allocate 2 GiB"}
    assert report.counts()["complete"] == 9
    assert outcome.verdict is not None


def test_in_scoring_even_with_the_smallest_batch(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pass = token_model.run_pass
    seen: list[float] = []

    def scarce(model: Any, *arguments: Any) -> Any:
        name = float(model.get_input_embeddings().weight.double().sum())
        if name not in seen:
            seen.append(name)
        if seen.index(name) == 3:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return run_pass(model, *arguments)

    monkeypatch.setattr(token_model, "run_pass", scarce)
    text = "early_stopping: false\nguide: none\nbatch_tokens: 256\n"
    outcome = search(small(text, trials=6))
    report = read_run(outcome.folder)
    failures = {record.baseline: record.failure for record in report.records if record.failure}
    assert set(failures) == {"linear", "task_arithmetic 0.5"}, "the same weights"
    assert set(failures.values()) == {
        "tasks 'capital', 'past': out of memory with 64 tokens in a forward pass on cpu: "
        "tried to allocate 2 GiB"
    }
    assert report.counts()["complete"] == 4
    assert "256 tokens in a forward pass: 128 from here" in (outcome.folder / "log.txt").read_text()
    assert outcome.verdict is not None


@pytest.mark.parametrize("shortages", [2, 1000])
def test_in_steps_along_the_gradient(
    small: Small, monkeypatch: pytest.MonkeyPatch, shortages: int
) -> None:
    slopes = Workspace.slopes
    left = shortages

    def scarce(self: Workspace, *arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return slopes(self, *arguments)

    monkeypatch.setattr(Workspace, "slopes", scarce)
    outcome = search(small("batch_tokens: 512\n", trials=20))
    report = read_run(outcome.folder)
    log = (outcome.folder / "log.txt").read_text()
    assert "512 tokens in a pass backwards: 256 from here" in log
    assert outcome.verdict is not None
    if shortages == 2:
        assert report.counts()["step"] >= 2
        assert "failed" not in report.counts()
    else:
        assert "step" not in report.counts()
        assert {record.failure for record in report.records if record.failure} == {
            "out of memory with 64 tokens in a pass backwards: tried to allocate 2 GiB"
        }


HOLDOUT = """\
import torch

searched = []

def fault(number, model, documents):
    if number == 0 and not searched:
        searched.extend(documents)
    if not set(documents) & set(searched) and number >= 4:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")
"""


def test_finalists_that_fail_on_the_holdout_do_not_end_the_night(faulty: Faulty) -> None:
    outcome = search(faulty(HOLDOUT, trials=13))
    report = read_run(outcome.folder)
    assert report.counts()["complete"] == 13
    assert outcome.verdict is not None
    assert report.by_number[outcome.verdict.winner].baseline in ("base", "dial", "past", "linear")
    log = (outcome.folder / "log.txt").read_text()
    assert "its function raised OutOfMemoryError: tried to allocate 2 GiB" in log

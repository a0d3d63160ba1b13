"""NaN and infinity, in a source and from a merge."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge import UserError, search
from evomerge.inspection import inspect
from evomerge.report import read_run
from evomerge.verbs import check

Small = Callable[..., Path]
Faulty = Callable[..., Path]
SPOILT = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(("model", "value"), [("past", math.nan), ("base", math.inf)])
def test_a_model_with_nan_is_refused_before_anything_is_scored(
    faulty: Faulty, own_models: Callable[[Path], Path], model: str, value: float
) -> None:
    config = faulty()
    models = own_models(config)
    file = models / model / "model.safetensors"
    tensors = load_file(file)
    tensors[SPOILT][3, 4] = value
    save_file(tensors, file, {"format": "pt"})
    words = rf"{model}.*: tensor {SPOILT} has NaN or infinite entries"
    found = inspect(str(models / "base"), [str(models / "past")], ["past"])
    assert found.problems == (f"{model}: tensor {SPOILT} has NaN or infinite entries",)
    with pytest.raises(UserError, match=words):
        check(config, probe=False)
    with pytest.raises(UserError, match=words):
        search(config)
    assert not (models.parent / "run" / "study.journal").exists()
    tensors[SPOILT][3, 4] = 0.0
    save_file(tensors, file, {"format": "pt"})
    search(config)


def test_a_merge_that_overflows_fails_and_never_wins(faulty: Faulty) -> None:
    config = faulty(trials=24)
    space = "space: {methods: [task_arithmetic], depth: global, ranges: {weight: [0, 8.0e+5]}}"
    lines = config.read_text().splitlines()
    changed = [space if line.startswith("space:") else line for line in lines]
    changed = [line.replace("float32", "float16") for line in changed]
    config.write_text("\n".join(changed))
    outcome = search(config)
    report = read_run(outcome.folder)
    failures = {record.failure for record in report.records if record.failure}
    assert failures
    assert all("has NaN or infinite entries after the merge" in str(words) for words in failures)
    values = [record.value for record in report.records if record.value is not None]
    assert len(values) + report.counts()["failed"] == 24
    assert all(math.isfinite(value) for value in values)
    assert outcome.verdict is not None
    assert torch.tensor(values).isfinite().all()

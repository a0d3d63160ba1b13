"""Candidates that kill their worker, or hang where Python cannot be interrupted; two searches."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge import UserError, load_config, search
from evomerge.report import read_run
from evomerge.searching.run_folder import RunFolder
from evomerge.workers import supervisor

pytestmark = pytest.mark.slow
Faulty = Callable[..., Path]

DEADLY = """\
import ctypes, os, signal

def is_sum(model, **times):
    # Whether the model is this sum of models.
    from safetensors.torch import load_file
    name = "model.layers.0.mlp.up_proj.weight"
    files = {own: load_file(f"{MODELS}/{own}/model.safetensors") for own in times}
    total = sum(times[own] * weights[name].float() for own, weights in files.items())
    return (dict(model.named_parameters())[name] - total).abs().max() < 1e-6

def fault(number, model, documents):
    if "HARMLESS" in os.environ:
        return
    if is_sum(model, dial=1, past=1, base=-1):
        os._exit(3)
    if is_sum(model, past=1):
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        while True:
            ctypes.CDLL(None).pause()
    time.sleep(0.1)
"""


def test_deadly_candidates_fail_and_the_search_ends_well(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_GRACE", 1.0)
    models = Path(__file__).parent.parent.parent / "configs" / "quickstart" / "models"
    code = f"import time\nMODELS = {str(models)!r}\n{DEADLY}"
    config = faulty(code, "trial_minutes: 0.05\n", trials=12)
    folder = RunFolder(load_config(config).output())
    refusals: list[str] = []
    joined: list[str] = []

    def meddle() -> None:
        while not folder.journal.exists() or not list(folder.path.glob("search/*.npz")):
            time.sleep(0.1)
        with pytest.raises(UserError) as refused:
            search(config)
        refusals.append(str(refused.value))
        # What kills the others does not kill this worker.
        while b"the worker died 3 times" not in folder.journal.read_bytes():
            time.sleep(0.2)
        command = [sys.executable, "-m", "evomerge", "worker", str(folder.path), "--allow-code"]
        settings = {**os.environ, "HARMLESS": "1"}
        answer = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
        joined.append(answer.stdout + answer.stderr)

    meddler = threading.Thread(target=meddle)
    meddler.start()
    outcome = search(config, workers=2)
    meddler.join()
    report = read_run(folder.path)
    assert outcome.verdict is not None
    failures = {record.baseline: record.failure for record in report.records if record.failure}
    assert failures["task_arithmetic 1"] == "the worker died 3 times while it was on this candidate"
    assert failures["past"] is not None
    assert failures["past"].startswith("took longer than 0.05 minutes (trial_minutes)")
    assert report.counts()["failed"] + report.counts()["complete"] == 12
    assert f"(pid {os.getpid()} on " in refusals[0]
    assert f"evomerge worker {folder.path}" in refusals[0]
    assert re.search(r"worker on .*: \d+ trials", joined[0]), joined[0]

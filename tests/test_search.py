"""Whole searches of the quickstart family: resume, kill, export, agreement with stock lm-eval."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge import Recipe, UserError, export, load_config, merge, score, search
from evomerge.assemble import evaluator, prepare
from evomerge.checkpoints.hashes import HashCache
from evomerge.describe import describe_run
from evomerge.merging.workspace import Workspace
from evomerge.report import read_run
from evomerge.run_picture import draw_run
from evomerge.scoring import token_model
from evomerge.scoring.scorecard import SMOOTH
from evomerge.searching.baselines import baselines
from evomerge.searching.run_folder import RunFolder

Small = Callable[..., Path]
TASKS = Path(__file__).parent.parent / "configs" / "quickstart" / "tasks"


def test_a_search_runs_to_a_verdict_and_its_export_reloads(small: Small, tmp_path: Path) -> None:
    outcome = search(small(trials=18))
    assert outcome.verdict is not None
    report = read_run(outcome.folder)
    assert report.counts() == {"complete": 13, "step": 5}
    assert report.state() == "finished"
    names = [record.baseline for record in report.records]
    assert names[:4] == ["base", "dial", "past", "linear"]
    assert outcome.verdict.winner in report.holdout
    draw_run(outcome.folder, tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000

    folder = export(outcome.folder, tmp_path / "winner")
    assert {"config.json", "recipe.yaml", "README.md", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }
    with pytest.raises(UserError, match="exists already"):
        export(outcome.folder, folder)
    export(outcome.folder, folder, force=True)

    winner = report.by_number[outcome.verdict.winner]
    assert Recipe.read(folder / "recipe.yaml").fingerprint() == winner.fingerprint
    loaded = load_config(small(trials=18))
    bench = prepare(loaded, HashCache(tmp_path / "hashes.json"))
    workspace = Workspace(bench.models, dtype=torch.float32, device=torch.device("cpu"))
    workspace.load(winner.recipe)
    fresh = AutoModelForCausalLM.from_pretrained(folder)
    for (name, live), (_, saved) in zip(
        workspace.model.state_dict().items(), fresh.state_dict().items(), strict=True
    ):
        assert torch.equal(live, saved), name
    rescored = {(m.task, m.name): m.value for m in score(folder, loaded).metrics}
    assert rescored.items() >= {(m.task, m.name): m.value for m in winner.metrics}.items()
    again = merge(folder / "recipe.yaml", tmp_path / "again")
    first, second = (path / "model.safetensors" for path in (folder, again))
    assert first.read_bytes() == second.read_bytes()

    answer = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "--model", "hf", "--batch_size", "64"),
            *("--model_args", f"pretrained={folder},dtype=float32,softmax_dtype=float32"),
            *("--tasks", "capital,past", "--include_path", ".", "--device", "cpu"),
            *("--samples", str(folder / "search_documents.json")),
            *("--output_path", str(tmp_path / "stock.json")),
        ],
        cwd=TASKS,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    (written,) = tmp_path.glob("stock*.json")
    stock = json.loads(written.read_text())["results"]
    own = [metric for metric in winner.metrics if metric.name != SMOOTH]
    assert len(own) >= 2
    for metric in own:
        assert stock[metric.task][metric.name] == pytest.approx(metric.value, abs=1e-6)


def test_a_lack_of_memory_is_recorded_and_the_search_goes_on(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pass = token_model.run_pass

    def scarce(model: Any, batch: Any, trunks: Any) -> Any:
        if batch.rows.tokens.numel() > 200:
            raise torch.OutOfMemoryError("tried to allocate")
        return run_pass(model, batch, trunks)

    monkeypatch.setattr(token_model, "run_pass", scarce)
    outcome = search(small("early_stopping: false\nbatch_tokens: 800\n", trials=3))
    report = read_run(outcome.folder)
    assert report.counts() == {"complete": 3, "waiting": 8}
    first = ["800 tokens in a forward pass: 400 from here"]
    first += ["400 tokens in a forward pass: 200 from here"]
    assert report.records[0].remarks == tuple(f"out of memory with {text}" for text in first)
    assert not report.records[1].remarks
    assert f"of 1 trials: out of memory with {first[0]}" in describe_run(outcome.folder)
    search(small("early_stopping: false\nbatch_tokens: 800\n", trials=4))
    assert not any(record.remarks for record in read_run(outcome.folder).records[1:])


def test_a_search_with_activations_exports_what_it_scored(small: Small, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("capital Turkey: Ankara\npast drug: drugged\n" * 40)
    config = small("calibration: {file: text.txt, tokens: 500}\n", trials=16, methods="regmean")
    outcome = search(config)
    ours = [r for r in read_run(outcome.folder).records if r.recipe.rules[0].method == "regmean"]
    assert len(ours) == 3
    assert ours[0].baseline == "regmean"
    folder = export(outcome.folder, tmp_path / "out", trial=ours[-1].number)
    again = merge(folder / "recipe.yaml", tmp_path / "again")  # without the run's statistics
    first, second = (path / "model.safetensors" for path in (folder, again))
    assert first.read_bytes() == second.read_bytes()
    card = score(folder, config)
    values = {(m.task, m.name): m.value for m in card.metrics}
    assert values.items() >= {(m.task, m.name): m.value for m in ours[-1].metrics}.items()
    (tmp_path / "text.txt").write_text("another text")
    with pytest.raises(UserError, match=r"calibration.sha256: .* -> "):
        search(config)


def test_the_same_command_resumes_and_another_configuration_is_refused(small: Small) -> None:
    first = search(small("sampler: random\nguide: none\n", trials=5))
    before = {r.number: r.value for r in read_run(first.folder).records if r.value is not None}
    assert len(before) == 5
    search(small("sampler: random\nguide: none\n", trials=14))
    after = {r.number: r.value for r in read_run(first.folder).records}
    assert {number: after[number] for number in before} == before
    assert sum(value is not None for value in after.values()) == 14
    fingerprints = [r.fingerprint for r in read_run(first.folder).records if r.value is not None]
    assert len(set(fingerprints)) == len(fingerprints)
    changed = small("sampler: random\nguide: none\nseed: 7\n", trials=14)
    with pytest.raises(UserError, match=r"seed: 0 -> 7(.|\n)*--fork"):
        search(changed)
    forked = search(changed, fork=True)
    assert forked.folder == first.folder.with_name("run-2")
    carried = [r for r in read_run(forked.folder).records if r.value is not None]
    assert len(carried) >= 14


def test_a_killed_search_loses_at_most_the_trial_under_way(small: Small) -> None:
    # Random proposals never meet by chance: a repeat would be a seed that repeats itself.
    config = small("sampler: random\n", trials=26)
    folder = RunFolder(load_config(config).output())
    finished: dict[int, float] = {}
    for wait in (0.3, 0.9, 1.7):
        process = subprocess.Popen(
            [sys.executable, "-m", "evomerge", "search", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        known = len(finished)
        deadline = time.monotonic() + 60
        while len(list(folder.path.glob("search/*.npz"))) <= known:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        records = read_run(folder.path).records
        values = {r.number: r.value for r in records if r.value is not None}
        assert finished.items() <= values.items()
        assert sum(record.state == "running" for record in records) <= 1
        finished = values
    with folder.journal.open("ab") as journal:
        journal.write(b'{"op_code": 5, "half a li')  # what a kill in mid-write leaves
    search(config)
    records = read_run(folder.path).records
    assert finished.items() <= {r.number: r.value for r in records}.items()
    assert not any(record.state in ("running", "waiting") for record in records)
    complete = [record for record in records if record.state == "complete"]
    steps = [record for record in records if record.state == "step"]
    assert len(complete) + len(steps) == 26
    assert len({record.fingerprint for record in complete}) == len(complete)
    assert [record.step for record in steps] == list(range(len(steps)))
    for record in records:
        if record.state == "interrupted" and record.recipe_text is not None:
            assert len([r for r in records if r.retry_of == record.number]) == 1
            assert record.recipe.fingerprint() in {r.fingerprint for r in (*complete, *steps)}


def test_ctrl_c_finishes_the_trial_and_says_how_to_go_on(small: Small) -> None:
    config = small(trials=400)
    folder = load_config(config).output()
    process = subprocess.Popen(
        [sys.executable, "-m", "evomerge", "search", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(list(folder.glob("search/*.npz"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(UserError, match=r"another search is running here .pid"):
        search(config)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert "the same command goes on" in out
    assert read_run(folder).counts().keys() <= {"complete", "waiting"}


def test_the_same_folder_twice_is_pointed_out(
    small: Small, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = small()
    again = path.read_text().replace(
        "sources:\n", f"sources:\n  twin: {TASKS.parent}/models/dial\n"
    )
    path.write_text(again)
    prepare(load_config(path), HashCache(tmp_path / "hashes.json"))
    assert "twin and dial have the same weights" in caplog.text


def test_candidates_come_and_go_and_bad_ones_are_named(small: Small, tmp_path: Path) -> None:
    bench = prepare(load_config(small(depth="layers")), HashCache(tmp_path / "hashes.json"))
    plain = baselines(bench.template)
    evaluate = evaluator(bench)
    scores = [evaluate(plain[name], "search")[0] for name in ("past", "dare_ties", "past")]
    assert scores[0] == scores[2]
    assert scores[0] != scores[1]

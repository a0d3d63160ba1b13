"""Several workers on one machine: one study, nothing lost, nothing run twice."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from evomerge import UserError, export, search
from evomerge.report import read_run
from evomerge.workers.local import _visible, devices_of_workers

Small = Callable[..., Path]
Command = Callable[..., "subprocess.Popen[str]"]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def scored(run: Path) -> int:
    return len(list((run / "search").glob("*.npz"))) if run.exists() else 0


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def of_workers(search: "subprocess.Popen[str]") -> list[psutil.Process]:
    children = psutil.Process(search.pid).children()
    return [child for child in children if "worker" in " ".join(child.cmdline())]


def kill_amid_a_trial(run: Path, worker: psutil.Process) -> bool:
    """Whether it was at a trial, and is dead now."""
    worker.suspend()
    own = (r for r in read_run(run).records if r.worker and f"-{worker.pid}-" in r.worker)
    busy = any(record.state == "running" for record in own)
    if busy:
        worker.kill()
    else:
        worker.resume()
    return busy


def test_workers_share_a_search_and_deaths_lose_nothing(
    small: Small, tmp_path: Path, evomerge: Command
) -> None:
    config, run = small(trials=60, depth="layers"), tmp_path / "run"
    first = evomerge("search", str(config), "--workers", "2")
    wait_for(lambda: scored(run) > 5)
    wait_for(lambda: kill_amid_a_trial(run, of_workers(first)[0]))
    wait_for(lambda: scored(run) > 20)
    workers = of_workers(first)
    first.kill()
    first.wait()
    wait_for(lambda: not any(map(lives, workers)), seconds=60)

    before = {r.number: r for r in read_run(run).records if r.value is not None}
    second = evomerge("search", str(config), "--workers", "2")
    printed, _ = second.communicate(timeout=200)
    assert second.returncode == 0, printed
    report = read_run(run)
    assert report.state() == "finished"
    counts = report.counts()
    assert counts.keys() <= {"complete", "pruned", "step", "interrupted"}
    assert sum(counts.values()) - counts.get("interrupted", 0) == 60
    for number, record in before.items():
        assert report.by_number[number] == record
    done = [r for r in report.records if r.state != "interrupted"]
    names = Counter(r.baseline for r in done if r.baseline)
    assert set(names.values()) == {1}
    fingerprints = Counter(r.fingerprint for r in done if r.state == "complete" and not r.same_as)
    assert max(fingerprints.values()) == 1
    assert len({record.worker for record in done}) >= 3
    log = (run / "log.txt").read_text()
    assert "died (signal 9) and is started again" in log
    assert "taken up again" in log
    assert (export(run, tmp_path / "winner") / "recipe.yaml").exists()
    assert not list((run / "workers").glob("*-*"))


@pytest.mark.slow
def test_a_signal_lets_every_worker_finish_its_trial(
    small: Small, tmp_path: Path, evomerge: Command
) -> None:
    config, run = small(trials=500, depth="layers"), tmp_path / "run"
    running = evomerge("search", str(config), "--workers", "2")
    wait_for(lambda: scored(run) > 5)
    running.send_signal(signal.SIGTERM)
    printed, _ = running.communicate(timeout=60)
    assert "stopped; the same command goes on" in printed
    report = read_run(run)
    assert report.state().startswith("stopped")
    assert "interrupted" not in report.counts()
    assert "running" not in report.counts()


@pytest.mark.slow
def test_a_mistake_that_every_start_would_find_ends_the_search(
    small: Small, tmp_path: Path, evomerge: Command
) -> None:
    (tmp_path / "raising.py").write_text("def score(model, tokenizer, documents):\n    1 / 0\n")
    (tmp_path / "documents.jsonl").write_text("1\n2\n3\n4\n")
    config = small("allow_code: true\n", trials=60)
    tasks = "  own: {scorer: 'raising:score', documents: documents.jsonl}\n"
    text = config.read_text()
    start, end = text.index("  capital:"), text.index("space:")
    config.write_text(text[:start] + tasks + text[end:])
    process = evomerge("search", str(config), "--workers", "2")
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "no worker can go on" in printed
    assert "10 candidates in a row failed, the last with: task 'own'" in printed
    assert "ZeroDivisionError" in printed
    assert read_run(tmp_path / "run").state().startswith("failed: no worker can go on")


@pytest.mark.slow
def test_the_second_search_on_a_folder_is_refused_and_may_join(
    small: Small, tmp_path: Path, evomerge: Command
) -> None:
    config, run = small(trials=200, depth="layers"), tmp_path / "run"
    first = evomerge("search", str(config), "--workers", "1")
    wait_for(lambda: scored(run) > 3)
    with pytest.raises(UserError, match=rf"pid {first.pid} on .*evomerge worker"):
        search(config)
    joined = evomerge("worker", str(run), "--label", "second")
    printed, _ = joined.communicate(timeout=120)
    assert joined.returncode == 0, printed
    assert first.wait(timeout=120) == 0
    trials = int(printed.rpartition("second: ")[2].split()[0])
    workers = Counter(r.worker for r in read_run(run).records if r.worker)
    assert trials > 0
    assert sorted(workers.values()) == sorted([200 - trials, trials])


def test_devices_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_of_workers("auto", None) == ("auto",)
    assert devices_of_workers("cpu", 3) == ("cpu",) * 3
    with pytest.raises(UserError, match="spread"):
        devices_of_workers("spread", 2)
    with pytest.raises(UserError, match="got 0"):
        devices_of_workers("auto", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_of_workers("auto", None) == ("cuda:0", "cuda:1")
    assert devices_of_workers("auto", 3) == ("cuda:0", "cuda:1", "cuda:0")
    assert devices_of_workers("cuda:1", None) == ("cuda:1",)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _visible(1) == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-7")
    assert [_visible(number) for number in range(2)] == ["5", "GPU-7"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5, GPU-7"

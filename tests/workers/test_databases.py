"""Workers that share a database, and no folder."""

import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge import UserError, search
from evomerge.report import read_run
from evomerge.scoring.scorecard import read_documents
from tests.workers.conftest import Postgres, free_port

pytestmark = pytest.mark.slow
Small = Callable[..., Path]
Command = Callable[..., "subprocess.Popen[str]"]


def finished(run: Path, url: str) -> Counter[str | None]:
    """Worker -> trials, of a run that ended well, all of whose files are in its folder."""
    report = read_run(run, url)
    assert report.state() == "finished"
    done = [r for r in report.records if r.state not in ("interrupted", "waiting")]
    for record in done:
        if record.value is not None:
            assert read_documents(run / "search" / f"{record.number:05}.npz")
    assert report.verdict is not None
    return Counter(record.worker for record in done)


def wait_for_trials(run: Path, count: int) -> None:
    end = time.monotonic() + 120
    while not (run / "search").exists() or len(list((run / "search").iterdir())) < count:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_worker_elsewhere_and_a_server_that_crashes(
    small: Small, tmp_path: Path, evomerge: Command, postgres: Postgres
) -> None:
    config = small(f"storage: {postgres.url}\n", trials=80, depth="layers")
    run = tmp_path / "run"
    first = evomerge("search", str(config), "--workers", "1")
    wait_for_trials(run, 4)
    second = evomerge("worker", postgres.url, "--folder", str(tmp_path / "far"), "--label", "far")
    wait_for_trials(tmp_path / "far", 6)
    assert read_run(tmp_path / "looked at from elsewhere", postgres.url).state() == "running"
    postgres.stop("immediate")
    time.sleep(60)
    postgres.start()
    printed, _ = second.communicate(timeout=200)
    assert second.returncode == 0, printed
    assert "tried again in" in printed
    printed, _ = first.communicate(timeout=200)
    assert first.returncode == 0, printed
    workers = finished(run, postgres.url)
    assert len(workers) == 2
    assert 80 <= workers.total() <= 82  # both may have begun one when the budget was nearly spent

    # A worker alone leads: it finds nothing left to do, and says the verdict again.
    third = evomerge("worker", postgres.url, "--folder", str(tmp_path / "third"))
    printed, _ = third.communicate(timeout=100)
    assert third.returncode == 0, printed
    assert ": 0 trials" in printed

    other = small(f"storage: {postgres.url}\nseed: 5\n", trials=80, depth="layers", name="other")
    with pytest.raises(UserError, match=r"another configuration:\n  seed: 0 -> 5"):
        search(other)


def test_a_worker_that_is_not_given_the_models_of_the_run_is_refused(
    small: Small, tmp_path: Path, evomerge: Command, postgres: Postgres
) -> None:
    search(small(f"storage: {postgres.url}\n", trials=3))
    mine = small(f"storage: {postgres.url}\n", trials=3, name="mine")
    mine.write_text(mine.read_text().replace("models/past", "models/sort7"))
    refused = evomerge("worker", postgres.url, "--config", str(mine), "--folder", str(tmp_path))
    printed, _ = refused.communicate(timeout=100)
    assert refused.returncode == 64
    assert "models.past" in printed


def test_a_proxy_before_a_journal(small: Small, tmp_path: Path, evomerge: Command) -> None:
    pytest.importorskip("grpc")
    port = free_port()
    url = f"grpc://127.0.0.1:{port}"
    proxy = evomerge("proxy", str(tmp_path / "night.journal"), "--port", str(port))
    assert proxy.stdout is not None
    assert proxy.stdout.readline() == f"storage: {url}\n"
    config = small(f"storage: {url}\n", trials=40, depth="layers")
    # Workers alone: the first one that comes begins the run, and leads it.
    workers = [
        evomerge("worker", url, "--config", str(config), "--folder", str(tmp_path / name))
        for name in ("one", "two")
    ]
    for worker in workers:
        printed, _ = worker.communicate(timeout=200)
        assert worker.returncode == 0, printed
    leader = next(n for n in ("one", "two") if list((tmp_path / n / "holdout").iterdir()))
    assert len(finished(tmp_path / leader, url)) == 2

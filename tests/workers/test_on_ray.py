"""Workers on a Ray cluster of several nodes, one of which is lost."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evomerge import UserError
from evomerge.report import read_run
from evomerge.workers.on_ray import connect

ray: Any = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    # Of Ray itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
Small = Callable[..., Path]
Command = Callable[..., "subprocess.Popen[str]"]
SMALL_NODE = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that runs nothing, and two nodes for a worker each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL_NODE})
    found.add_node(num_cpus=1, num_gpus=1, object_store_memory=80 * 2**20)
    try:
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


def test_a_lost_node_costs_no_trial_and_the_same_command_goes_on(
    small: Small, tmp_path: Path, evomerge: Command, cluster: Any
) -> None:
    with pytest.raises(UserError, match="has 1 GPUs, and a worker needs 2"):
        connect(cluster.address, None, gpus=2.0)
    assert connect(cluster.address, None, gpus=0.5) == 2
    node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)

    run = tmp_path / "run"
    config = small("guide: none\n", trials=40, depth="layers")
    command = ["search", str(config), "--ray", cluster.address, "--workers", "2"]
    first = evomerge(*command, "--gpus-per-worker", "0")
    end = time.monotonic() + 120
    while not (run / "search").exists() or len(list((run / "search").iterdir())) < 8:
        assert time.monotonic() < end
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.1)
    cluster.remove_node(node, allow_graceful=False)
    printed, _ = first.communicate(timeout=200)
    assert first.returncode == 0, printed
    report = read_run(run)
    counts = report.counts()
    assert sum(counts.values()) - counts.get("interrupted", 0) == 40
    assert len({record.worker for record in report.records}) >= 2
    assert "died" in (run / "log.txt").read_text()

    again = evomerge(*command, "--gpus-per-worker", "0", "--trials", "42")
    printed, _ = again.communicate(timeout=200)
    assert again.returncode == 0, printed
    counts = read_run(run).counts()
    assert sum(counts.values()) - counts.get("interrupted", 0) == 42

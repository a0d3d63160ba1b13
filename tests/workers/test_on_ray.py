"""Workers on a Ray cluster of several nodes, one of which is lost."""

import subprocess
import sys
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


NODES = f"""
import sys
from ray.cluster_utils import Cluster

small = {SMALL_NODE}
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, **small))
cluster.add_node(num_cpus=1, num_gpus=1, **small)
print(cluster.address, flush=True)
sys.stdin.readline()
node = cluster.add_node(num_cpus=1, **small)
print("added", flush=True)
sys.stdin.readline()
cluster.remove_node(node, allow_graceful=False)
print("removed", flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


class Nodes:
    """A head that runs nothing, and two nodes for a worker each, of which the second is added and
    killed. In a process of its own: Ray forks its servers, which hang where other tests have left
    threads of gRPC."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", NODES]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.address = self._answer()

    def next(self) -> None:
        """Adds the second node; kills it; ends."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._answer()

    def end(self) -> None:
        self._process.communicate("\n\n\n", timeout=60)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        assert answer, "the nodes could not be started"
        return answer


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    found = Nodes()
    try:
        yield found
    finally:
        ray.shutdown()
        found.end()


def test_a_lost_node_costs_no_trial_and_the_same_command_goes_on(
    small: Small, tmp_path: Path, evomerge: Command, nodes: Nodes
) -> None:
    with pytest.raises(UserError, match="has 1 GPUs, and a worker needs 2"):
        connect(nodes.address, None, gpus=2.0)
    assert connect(nodes.address, None, gpus=0.5) == 2
    nodes.next()

    run = tmp_path / "run"
    config = small("guide: none\n", trials=40, depth="layers")
    command = ["search", str(config), "--ray", nodes.address, "--workers", "2"]
    first = evomerge(*command, "--gpus-per-worker", "0")
    end = time.monotonic() + 300
    while not (run / "search").exists() or len(list((run / "search").iterdir())) < 8:
        assert time.monotonic() < end
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.1)
    nodes.next()
    printed, _ = first.communicate(timeout=400)
    assert first.returncode == 0, printed
    report = read_run(run)
    counts = report.counts()
    assert sum(counts.values()) - counts.get("interrupted", 0) == 40
    assert len({record.worker for record in report.records}) >= 2
    assert "died" in (run / "log.txt").read_text()

    again = evomerge(*command, "--gpus-per-worker", "0", "--trials", "42")
    printed, _ = again.communicate(timeout=400)
    assert again.returncode == 0, printed
    counts = read_run(run).counts()
    assert sum(counts.values()) - counts.get("interrupted", 0) == 42

"""Workers on a Ray cluster: Ray places them, one for so many GPUs each, and tells when one is lost.

A worker is a process of a Ray task on whichever node has room. When the task ends, with its node or
because this process ended, the worker's standard input closes, and it dies.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from evomerge.errors import UserError
from evomerge.workers.joining import STORAGE
from evomerge.workers.supervisor import last_lines

_LOST = -int(signal.SIGKILL)  # exit code of a worker whose node is gone


def connect(address: str, workers: int | None, gpus: float) -> int:
    """Joins the cluster; how many workers to start.

    address: `auto`, `host:port`, or `ray://host:port`. workers: None: as many as its GPUs allow.
    gpus: of each worker; of a model that needs several, as many, and less than 1 to share.
    """
    ray = _ray()
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--ray {address}: no Ray cluster answers there: {error}") from error
    if workers is not None:
        return workers
    found = ray.cluster_resources().get("GPU", 0.0)
    if (count := int(found // gpus) if gpus else 0) < 1:
        raise UserError(
            f"--ray {address}: the cluster has {found:g} GPUs, and a worker needs {gpus:g}; say "
            "how many workers with --workers, or how many GPUs each needs with --gpus-per-worker"
        )
    return count


class StartOnRay:
    """Starts workers on the cluster's nodes."""

    def __init__(self, run: str, gpus: float) -> None:
        """run: the run folder on a file system that all nodes share, or the study's URL. gpus: of
        each worker."""
        self._run = run
        options: dict[str, Any] = {"num_gpus": gpus} if gpus else {"num_cpus": 1}
        self._task = _ray().remote(max_retries=0, **options)(run_worker)

    def __call__(self, number: int, arguments: list[str]) -> "RayWorker":
        """See `Start`."""
        # Beside which others a worker is, Ray decides.
        place = arguments.index("--beside")
        arguments = [*arguments[:place], *arguments[place + 2 :]]
        return RayWorker(self._task.remote(self._run, arguments))


class RayWorker:
    """See `Running`."""

    process: int | None = None

    def __init__(self, task: Any) -> None:
        self._task = task
        self._said = ""

    def ended(self) -> int | None:
        """See `Running`."""
        ray = _ray()
        if not ray.wait([self._task], timeout=0)[0]:
            return None
        try:
            code, self._said = ray.get(self._task)
        except ray.exceptions.TaskCancelledError:
            return 0
        except ray.exceptions.RayError as error:
            self._said = last_lines(str(error))
            return _LOST
        return int(code)

    def stop(self) -> None:
        """See `Running`."""
        _ray().cancel(self._task)

    def kill(self) -> None:
        """See `Running`."""
        _ray().cancel(self._task, force=True)

    def last_words(self) -> str:
        """See `Running`."""
        return self._said


def run_worker(run: str, arguments: Sequence[str]) -> tuple[int, str]:
    """The task: (exit code, last lines). A cancellation lets the worker finish its trial."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if "://" in run:
        environment[STORAGE] = run
    process = subprocess.Popen(
        [sys.executable, "-m", "evomerge", "worker", run, "--device", "auto", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    while True:
        try:
            for line in process.stdout:
                lines = [*lines, line][-20:]
            return process.wait(), last_lines("".join(lines))
        except KeyboardInterrupt:
            process.terminate()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray: pip install 'evomerge[ray]'") from None
    return ray

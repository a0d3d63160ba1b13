"""Workers of this machine, each a process with a device of its own."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import torch

from evomerge.errors import UserError
from evomerge.workers.joining import STORAGE
from evomerge.workers.supervisor import last_lines

log = logging.getLogger(__name__)


def devices_of_workers(device: str, workers: int | None) -> tuple[str, ...]:
    """The device of each worker.

    device: of the configuration. workers: None: one for each GPU that is visible, if the
    configuration leaves the device open, else one. More than there are GPUs share them in turn.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers: got {workers}; expected at least 1")
    if device == "spread" and (workers or 1) > 1:
        raise UserError(
            f"device: spread: one model takes all GPUs; expected one worker, got {workers}"
        )
    visible = torch.cuda.device_count() if device == "auto" else 0
    count = workers or max(1, visible)
    if not visible:
        return (device,) * count
    return tuple(f"cuda:{number % visible}" for number in range(count))


class LocalProcess:
    """See `Running`."""

    def __init__(self, command: list[str], environment: dict[str, str], output: Path) -> None:
        """output: what the process prints; of its last start."""
        self._output = output
        with _opened(output) as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # closed when this process ends, however it does
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which passes it on
            )
        self.process: int | None = self._process.pid

    def ended(self) -> int | None:
        """See `Running`."""
        code = self._process.poll()
        if code is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def stop(self) -> None:
        """See `Running`."""
        self._process.terminate()

    def kill(self) -> None:
        """See `Running`."""
        self._process.kill()
        self._process.wait()
        self.ended()

    def last_words(self) -> str:
        """See `Running`."""
        try:
            return last_lines(self._output.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return ""


class StartHere:
    """Starts workers on this machine."""

    def __init__(self, run: Path, storage: str | None, devices: tuple[str, ...]) -> None:
        """run: the run folder. storage: URL of the study. devices: of each worker."""
        self._run = run
        self._storage = storage
        self._devices = devices
        (run / "workers").mkdir(exist_ok=True)

    def __call__(self, number: int, arguments: list[str]) -> LocalProcess:
        """See `Start`."""
        device = self._devices[number]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if self._storage is not None:
            environment[STORAGE] = self._storage
        if device.startswith("cuda:"):
            environment["CUDA_VISIBLE_DEVICES"] = _visible(int(device.partition(":")[2]))
            device = "cuda:0"
        command = [sys.executable, "-m", "evomerge", "worker", str(self._run), "--device", device]
        output = self._run / "workers" / f"{number}.txt"
        return LocalProcess([*command, *arguments], environment, output)


def _opened(path: Path) -> IO[bytes]:
    """For a worker's output, which is not needed where the disk is full."""
    try:
        return path.open("wb")
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error)
        return Path(os.devnull).open("wb")


def _visible(number: int) -> str:
    """What CUDA_VISIBLE_DEVICES calls the GPU of that number among those visible here."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return str(number) if given is None else given.split(",")[number].strip()

"""What many tests need: the quickstart family, and short searches of it."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from evomerge.report import RunReport, read_run
from evomerge.verbs import search

ROOT = Path(__file__).parent.parent
FAMILY = ROOT / "configs" / "quickstart"

SMALL = """\
base: {family}/models/base
sources:
  dial: {family}/models/dial
  past: {family}/models/past
tasks:
  capital: {{folder: {family}/tasks, limit: 16}}
  past: {{folder: {family}/tasks, limit: 12}}
space: {{methods: [{methods}], depth: {depth}}}
budget: {{trials: {trials}}}
finalists: 1
dtype: float32
threads: 1
output: {output}
"""


@pytest.fixture(autouse=True, scope="session")
def _one_quiet_thread() -> None:
    """Models this small run faster on one thread; the libraries' notices would bury the tests'."""
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.fixture(autouse=True, scope="session")
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept for the next start lies where the tests' other files lie."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user_cache")))
        yield


def small_run(folder: Path, methods: str, trials: int) -> RunReport:
    """What a small search over layers, run now, reports."""
    config = folder / "run.yaml"
    config.write_text(
        SMALL.format(
            family=FAMILY, methods=methods, depth="layers", trials=trials, output=folder / "run"
        )
    )
    return read_run(search(config).folder)


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small search configuration; `text` is appended."""

    def write(
        text: str = "",
        *,
        trials: int = 16,
        methods: str = "task_arithmetic",
        depth: str = "global",
        name: str = "run",
    ) -> Path:
        path = tmp_path / f"{name}.yaml"
        content = SMALL.format(
            family=FAMILY, methods=methods, depth=depth, trials=trials, output=tmp_path / name
        )
        path.write_text(content + text)
        return path

    return write

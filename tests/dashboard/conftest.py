"""A real run with names that look like HTML, and the pages served as users serve them."""

import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from evomerge.verbs import search

FAMILY = Path(__file__).parent.parent.parent / "configs" / "quickstart"
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
"""The beginning of a document's question."""
TASK = "<i>past</i>"
"""A task's name."""
TRIALS = 26


def write_config(folder: Path, name: str, trials: int = TRIALS) -> Path:
    """A search with a hostile task, and hostile documents."""
    tasks = folder / "tasks"
    if not tasks.exists():
        shutil.copytree(FAMILY / "tasks", tasks)
        lines = (tasks / "past.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        for row in rows[:200]:
            row["question"] = f"{HOSTILE} {row['question']}"
        text = (tasks / "past.yaml").read_text().replace("task: past", f"task: {TASK!r}")
        (tasks / "past.yaml").write_text(text)
        (tasks / "past.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = {
        "base": str(FAMILY / "models" / "base"),
        "sources": {
            "dial": str(FAMILY / "models" / "dial"),
            "past": str(FAMILY / "models" / "past"),
        },
        "tasks": {
            "capital": {"folder": str(tasks), "limit": 16},
            TASK: {"folder": str(tasks), "limit": 40},
        },
        "space": {"methods": ["task_arithmetic"], "depth": "layers"},
        "budget": {"trials": trials},
        "dtype": "float32",
        "threads": 1,
        "output": str(folder / "runs" / name),
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `runs/night` and the short `runs/other`, finished searches on the same documents."""
    path = tmp_path_factory.mktemp("dashboard")
    search(write_config(path, "other", trials=4))
    search(write_config(path, "night"))
    return path


@pytest.fixture(scope="session")
def site(folder: Path) -> Iterator[str]:
    """The address of the pages, served by a process of its own."""
    words = [sys.executable, "-m", "evomerge", "dashboard", str(folder / "runs"), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().removeprefix("dashboard: ").strip().rstrip("/")
            for _ in range(100):
                if "trials" in get(f"{address}/run/night"):
                    break
            yield address
        finally:
            server.terminate()


def get(address: str) -> str:
    """The text that is answered."""
    with urllib.request.urlopen(address, timeout=30) as answer:
        text: str = answer.read().decode()
        return text

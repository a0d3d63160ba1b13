"""Doors of tasks: YAML files, their documents, and the lines and texts of other scorers."""

import json
from pathlib import Path
from random import Random
from typing import Any

from evomerge.checkpoints.tokenizer import load_tokenizer
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.bits_per_byte import BitsPerByte
from evomerge.scoring.harness import Harness
from evomerge.scoring.own_function import read_documents
from evomerge.scoring.sharing import LanguageModels
from evomerge.scoring.tasks import TaskRequest
from tests.fuzz.doors_of_yaml import VALUES, yaml_of
from tests.fuzz.judging import Files, Link, Pipe
from tests.fuzz.mutating import spoil, spoil_bytes, written
from tests.fuzz.seeds import BASE, DOCUMENTS, GENERATING, TASK

_HOSTILE: dict[str, tuple[Any, ...]] = {
    "doc_to_text": (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
        "{{ 'a' * 10000000000 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% for a in range(99999) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
    ),
    "dataset_path": ("pandas", "sql", "evil.py", "/etc", "..", "generator", "cache", "text", "csv"),
    "dataset_kwargs": (
        {"data_files": "/etc/passwd"},
        {"data_files": {"test": "../outside.jsonl"}},
        {"data_files": {"test": "https://127.0.0.1:9/x.jsonl"}},
        {"data_files": {"test": "**"}},
        {"data_files": {"test": "own.jsonl"}, "cache_dir": "../elsewhere"},
        {"data_dir": "/etc"},
    ),
    "metric_list": ([{"metric": "evil"}], [{"metric": "acc", "hf_evaluate": True}]),
    "use_prompt": ("evil.yaml:x", "/etc/passwd.yaml:x", "promptsource:x"),
    "include": ("own.yaml", "../outside.yaml", "/etc/passwd", ["other.yaml", "other.yaml"], 3),
    "class": ("os.system", "!function evil.T"),
    "unsafe_code": (True,),
}


class Tasks:
    """A folder with a task of lm-eval and its documents."""

    name = "tasks"

    def __init__(self) -> None:
        self._tokenizer = load_tokenizer(BASE)

    def make(self, random: Random) -> Files:
        seed = random.choice((TASK, TASK, GENERATING))
        files: dict[str, Any] = {
            "tasks/own.yaml": written(seed).encode(),
            "tasks/own.jsonl": _LINES,
        }
        match random.randrange(5):
            case 0 | 1:
                files["tasks/own.yaml"] = yaml_of(random, seed)
            case 2:
                key = random.choice(list(_HOSTILE))
                changed = {**seed, key: random.choice(_HOSTILE[key])}
                files["tasks/own.yaml"] = written(changed).encode()
            case 3:
                rows = [written(spoil(random, row, VALUES[:60])) for row in DOCUMENTS]
                files["tasks/own.jsonl"] = "\n".join(rows).encode("utf-8", "surrogatepass")
            case 4:
                files["tasks/own.jsonl"] = spoil_bytes(random, _LINES)
        if random.random() < 0.2:
            files["tasks/evil.py"] = b"open('pwned', 'w').close()\n"
            files["tasks/evil/evil.py"] = files["tasks/evil.py"]
            files["tasks/other.yaml"] = yaml_of(random, {"include": "own.yaml", "task": "own"})
            files["outside.yaml"] = b"doc_to_text: outside\n"
            files["outside.jsonl"] = _LINES
        return files

    def enter(self, folder: Path) -> None:
        request = TaskRequest(name="own", folder=folder / "tasks")
        harness = Harness([request], self._tokenizer, budget=BatchBudget(256))
        harness.documents("own")
        harness.questions("own", [0])


_LINES = b"".join(json.dumps(row).encode() + b"\n" for row in DOCUMENTS)


class Lines:
    """The JSONL file of a function's documents, and the text of bits per byte."""

    name = "documents"

    def __init__(self) -> None:
        self._models = LanguageModels(load_tokenizer(BASE), budget=BatchBudget(256))

    def make(self, random: Random) -> Files:
        rows = [written(spoil(random, row, VALUES)) for row in DOCUMENTS[:2]]
        content: Any = "\n".join(rows).encode("utf-8", "surrogatepass")
        if random.random() < 0.5:
            content = spoil_bytes(random, content)
        if random.random() < 0.01:
            content = random.choice((Pipe(), Link("/dev/zero"), Link("..")))
        return {random.choice(("rows.jsonl", "text.txt")): content}

    def enter(self, folder: Path) -> None:
        if (folder / "rows.jsonl").is_symlink() or (folder / "rows.jsonl").exists():
            read_documents("own", folder / "rows.jsonl")
        else:
            BitsPerByte({"own": folder / "text.txt"}, self._models)

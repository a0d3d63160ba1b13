"""A task folder whose code was not allowed runs none, and reaches nothing outside itself."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import UserError
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.harness import Harness
from evomerge.scoring.task_safety import check_documents
from evomerge.scoring.tasks import TaskRequest

CLOZE = {"output_type": "loglikelihood", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}"}
ROWS = [{"q": f"{number}?", "a": str(number)} for number in range(3)]
WRITES = "open('pwned', 'w').close()\n"


def load(tokenizer: Any, folder: Path, allow_code: bool = False) -> Harness:
    request = TaskRequest(name="own", folder=folder)
    return Harness([request], tokenizer, budget=BatchBudget(256), allow_code=allow_code)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric_list": [{"metric": "evil"}]}, "'evil' is no metric of lm-eval"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "loads metrics as scripts"),
        ({"dataset_path": "pandas"}, "'pandas' is no plain file format"),
        ({"use_prompt": "/etc/prompts.yaml:x"}, "use_prompt: reads another file"),
        ({"class": "evil.Task"}, "class: names Python code"),
        ({"include": "../outside.yaml"}, "outside.yaml lies outside the task folder"),
        ({"include": "own.yaml"}, "own.yaml includes itself"),
        ({"include": [3]}, "include: 3; expected the name"),
        ({"dataset_kwargs": {"data_files": "/etc/passwd"}}, "'/etc/passwd'.*outside"),
        ({"dataset_kwargs": {"data_files": {"test": ["../x.jsonl"]}}}, "'../x.jsonl'.*outside"),
        ({"dataset_kwargs": {"data_files": "http://127.0.0.1/x"}}, "fetched from an address"),
        ({"dataset_kwargs": {"data_dir": "/etc"}}, "'/etc'.*outside"),
        ({"dataset_kwargs": {"cache_dir": "x"}}, "cache_dir: would read or write elsewhere"),
        ({"group": "g", "task": [{"task": "x", "dataset_path": "/etc"}]}, "'/etc'.*outside"),
    ],
)
def test_what_runs_code_or_leaves_the_folder_is_refused(
    tmp_path: Path, tokenizer: Any, add_task: Any, changes: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    add_task(folder, "own", ROWS, **CLOZE)
    for path in (folder / "evil.py", folder / "evil" / "evil.py"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(WRITES)
    (tmp_path / "outside.yaml").write_text("doc_to_text: x\n")
    content = yaml.safe_load((folder / "own.yaml").read_text())
    (folder / "own.yaml").write_text(yaml.safe_dump(content | changes))
    with pytest.raises(UserError, match=message) as refused:
        load(tokenizer, folder)
    assert "allow_code" in str(refused.value) or "include" in changes
    assert not list(tmp_path.rglob("pwned"))


def test_a_data_file_may_not_be_a_link_out_of_the_folder(
    tmp_path: Path, tokenizer: Any, add_task: Any
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    add_task(folder, "own", ROWS, **CLOZE)
    (folder / "own.jsonl").rename(tmp_path / "secret.jsonl")
    (folder / "own.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(UserError, match="outside the task folder"):
        load(tokenizer, folder)
    assert load(tokenizer, folder, allow_code=True).tasks == ("own",)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
        "{{ 'a' * 10000000000 }}",
        "{{ 10 ** 10 ** 10 }}",
    ],
)
def test_templates_run_in_a_sandbox(
    tmp_path: Path,
    tokenizer: Any,
    add_task: Any,
    template: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    add_task(tmp_path, "own", ROWS, **{**CLOZE, "doc_to_text": template})
    with pytest.raises(UserError, match="cannot be loaded: SecurityError"):
        load(tokenizer, tmp_path)
    assert not list(tmp_path.rglob("pwned"))


def test_aliases_that_multiply_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (tmp_path / "own.yaml").write_text("task: own\n" + "\n".join(lines))
    with pytest.raises(UserError, match="too large"):
        load(tokenizer, tmp_path)


@pytest.mark.parametrize(
    "content",
    ['null\n{"q": 1}\n"b"', '{"q": 1}\nnull\n"b"', '{"q": 1} null "b"', '"b"', "", "[1", "{"],
)
def test_documents_at_which_the_reader_ends_the_process_are_refused(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "own.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"own.jsonl"):
        check_documents(tmp_path / "own.jsonl")


@pytest.mark.parametrize(
    "content",
    ['{"q": 1}\n\n{"q": NaN}\n', '[{"q": 1}, {"q": 2}]', '{\n "rows": [{"q": 1}]\n}', '{"q": "é"}'],
)
def test_documents_that_are_json_are_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "own.jsonl").write_text(content)
    check_documents(tmp_path / "own.jsonl")

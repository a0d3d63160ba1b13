"""What is wrong with a task is said before the first candidate."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
import yaml

from evomerge.errors import UserError
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.harness import Harness
from evomerge.scoring.loading import public_test_set
from evomerge.scoring.tasks import TaskRequest

CLOZE = {"output_type": "loglikelihood", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}"}
ROWS = [{"q": f"{number}?", "a": str(number)} for number in range(3)]


def load(tokenizer: Any, allow_code: bool = False, **request: Any) -> Harness:
    return Harness(
        [TaskRequest(**request)], tokenizer, budget=BatchBudget(256), allow_code=allow_code
    )


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"name": "choise"}, "task 'choise' is not in .*did you mean 'choice'.*leave the folder"),
        ({"name": "choice", "metric": "accc"}, "no metric 'accc'; did you mean 'acc'.*acc_norm"),
        ({"name": "counted", "filter": "digits"}, "no filter 'digits'; did you mean 'digit'.*whol"),
    ],
)
def test_unknown_names(
    request_: dict[str, Any], message: str, folder: Path, tokenizer: Any
) -> None:
    with pytest.raises(UserError, match=message):
        load(tokenizer, folder=folder, **request_)


def test_each_task_once(folder: Path, tokenizer: Any) -> None:
    request = TaskRequest(name="choice", folder=folder)
    with pytest.raises(UserError, match="each only once"):
        Harness([request, request], tokenizer, budget=BatchBudget(256))
    with pytest.raises(UserError, match="at least one"):
        Harness([], tokenizer, budget=BatchBudget(256))


def test_folder_that_is_not_there(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="missing is not there"):
        load(tokenizer, name="choice", folder=tmp_path / "missing")


def test_task_file_that_is_not_yaml(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "bad.yaml").write_text("task: [unclosed")
    with pytest.raises(UserError, match=r"bad.yaml: is not YAML"):
        load(tokenizer, name="bad", folder=tmp_path)


def test_missing_data_file(tmp_path: Path, tokenizer: Any, add_task: Any) -> None:
    add_task(tmp_path, "lost", ROWS, **CLOZE)
    (tmp_path / "lost.jsonl").unlink()
    with pytest.raises(UserError, match=r"'lost' cannot be loaded: FileNotFound.*lost.jsonl"):
        load(tokenizer, name="lost", folder=tmp_path)


def test_data_that_cannot_be_downloaded(
    tmp_path: Path, tokenizer: Any, add_task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    add_task(tmp_path, "far", ROWS, **CLOZE, **{"dataset_path": "no/such", "dataset_kwargs": {}})
    with pytest.raises(UserError, match=r"'far': its data cannot be downloaded.*no connection"):
        load(tokenizer, name="far", folder=tmp_path)


def test_code_runs_only_when_allowed(tmp_path: Path, tokenizer: Any, add_task: Any) -> None:
    add_task(tmp_path, "coded", ROWS, **{**CLOZE, "doc_to_text": "TEXT"})
    path = tmp_path / "coded.yaml"
    path.write_text(path.read_text().replace("TEXT", "!function shout.ask"))
    marker = tmp_path / "ran"
    (tmp_path / "shout.py").write_text(
        f"open({str(marker)!r}, 'w').close()\ndef ask(document):\n    return document['q'] + '!'\n"
    )
    with pytest.raises(UserError, match=r"coded.yaml: '!function shout.ask' would run Python code"):
        load(tokenizer, name="coded", folder=tmp_path)
    assert not marker.exists()
    harness = load(tokenizer, name="coded", folder=tmp_path, allow_code=True)
    assert harness._tasks["coded"].documents[0].requests[0].args == ("0?!", "0")


def test_code_in_an_included_file(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "common.txt").write_text("doc_to_text: !function shout.ask\n")
    (tmp_path / "a.yaml").write_text("include: common.txt\ntask: a\n")
    with pytest.raises(UserError, match=r"common.txt: '!function shout.ask'"):
        load(tokenizer, name="a", folder=tmp_path)


def test_task_that_runs_answers_as_code(tmp_path: Path, tokenizer: Any, add_task: Any) -> None:
    add_task(tmp_path, "risky", ROWS, **CLOZE, unsafe_code=True)
    with pytest.raises(UserError, match="'risky' runs the model's answers as code"):
        load(tokenizer, name="risky", folder=tmp_path)
    assert load(tokenizer, name="risky", folder=tmp_path, allow_code=True).tasks == ("risky",)


def test_shots_that_the_task_forbids(tmp_path: Path, tokenizer: Any, add_task: Any) -> None:
    add_task(tmp_path, "fixed", ROWS, **CLOZE, num_fewshot=0)
    with pytest.raises(UserError, match="num_fewshot is 3, but the task's file fixes it at 0"):
        load(tokenizer, name="fixed", folder=tmp_path, num_fewshot=3)
    assert load(tokenizer, name="fixed", folder=tmp_path, num_fewshot=0).tasks == ("fixed",)


def test_chat_template_that_is_missing(
    folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(UserError, match="the tokenizer has none"):
        load(tokenizer, name="cloze", folder=folder, chat_template=True)


def test_group_that_is_averaged_over_subtasks(
    tmp_path: Path, tokenizer: Any, add_task: Any
) -> None:
    add_task(tmp_path, "one", ROWS, **CLOZE)
    add_task(tmp_path, "two", ROWS, **CLOZE)
    aggregate = [{"metric": "acc", "weight_by_size": False}]
    group = {"group": "g", "task": ["one", "two"], "aggregate_metric_list": aggregate}
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(group))
    with pytest.raises(UserError, match=r"'acc' over subtasks.*one by one instead: one, two"):
        load(tokenizer, name="g", folder=tmp_path)


def test_loading_leaves_no_trace(
    folder: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Folder and random state stay, and nothing is printed."""
    import random

    import numpy as np
    import torch

    monkeypatch.chdir(tmp_path)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    load(tokenizer, name="choice", folder=folder)
    assert Path.cwd() == tmp_path
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == before
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("path", "test_split", "words"),
    [
        ("owner/data", "test", "owner/data, split test"),
        ("owner/data", None, None),  # its documents are the validation split's
        ("json", "test", None),
        ("data.py", "test", None),  # beside the task's file
    ],
)
def test_public_test_sets_are_told_from_own_documents(
    tmp_path: Path, path: str, test_split: str | None, words: str | None
) -> None:
    (tmp_path / "data.py").touch()
    task = SimpleNamespace(
        config=SimpleNamespace(dataset_path=path, test_split=test_split),
        has_test_docs=lambda: test_split is not None,
    )
    own = TaskRequest(name="own", folder=tmp_path)
    assert public_test_set(own, [task]) == words
    of_lm_eval = TaskRequest(name="gsm8k", folder=None)
    assert public_test_set(of_lm_eval, [task]) == "a task that comes with lm-eval"

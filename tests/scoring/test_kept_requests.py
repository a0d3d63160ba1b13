"""A second start finds the requests and tokens of the first, and is none the wiser."""

import gzip
import json
import logging
import pickle
import sys
import zipfile
from collections.abc import Callable
from copy import deepcopy
from datetime import date
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerFast

from evomerge.files import cache_folder
from evomerge.scoring import task_names
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.fingerprints import NotKept, _described, exact_json
from evomerge.scoring.harness import Harness
from evomerge.scoring.language_model import HFLM
from evomerge.scoring.scorer import score_blocks
from evomerge.scoring.task_names import built_in_tasks
from evomerge.scoring.tasks import TaskRequest

TASKS = ("choice", "letter", "cloze", "text", "answer", "counted")
CLOZE = {"output_type": "loglikelihood", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}"}
ROWS = [{"q": f"{number}?", "a": str(number)} for number in range(6)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder("requests")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tasks whose requests were built, as they are."""
    names: list[str] = []
    original = Task.build_all_requests

    def build(self: Any, **settings: Any) -> None:
        names.append(self.config.task)  # task_name draws a random number
        original(self, **settings)

    monkeypatch.setattr(Task, "build_all_requests", build)
    return names


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that lm-eval was asked to tokenise."""
    texts: list[str] = []
    original, original_batch = HFLM.tok_encode, HFLM.tok_batch_encode

    def encode(self: Any, string: str, *rest: Any, **settings: Any) -> Any:
        texts.append(string)
        return original(self, string, *rest, **settings)

    def encode_batch(self: Any, strings: list[str], *rest: Any, **settings: Any) -> Any:
        texts.extend(strings)
        return original_batch(self, strings, *rest, **settings)

    monkeypatch.setattr(HFLM, "tok_encode", encode)
    monkeypatch.setattr(HFLM, "tok_batch_encode", encode_batch)
    return texts


def start(tokenizer: Any, *names: str, seed: int = 1234, code: bool = False, **request: Any) -> Any:
    requests = [TaskRequest(name=name, **request) for name in names]
    return Harness(requests, tokenizer, budget=BatchBudget(256), seed=seed, allow_code=code)


def instances(harness: Harness) -> list[list[Instance]]:
    return [
        [one for document in task.documents for one in document.requests]
        for task in harness._tasks.values()
    ]


def every_document(harness: Harness) -> dict[str, range]:
    return {name: range(len(harness.documents(name))) for name in harness.tasks}


def score(harness: Harness, model: Any, documents: dict[str, Any] | None = None) -> Any:
    """What does not depend on the clock; of all documents, in two blocks."""
    if documents is None:
        documents = every_document(harness)
    halves = [{name: list(n)[place::2] for name, n in documents.items()} for place in (0, 1)]
    blocks = [{name: n for name, n in half.items() if n} for half in halves]
    card = score_blocks(harness, model, blocks)
    return card.metrics, card.per_document


def exactly(value: Any) -> Any:
    """Shows types too, which == does not tell apart."""
    if isinstance(value, dict):
        return {name: exactly(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [exactly(inner) for inner in value]
    return type(value), value


def test_instances_are_equal_in_every_field(folder: Path, tokenizer: Any, built: list[str]) -> None:
    names = (*TASKS, "pair", "both")
    cold = instances(start(tokenizer, *names, folder=folder))
    assert len(built) == len(TASKS)  # the group and the tag ask what its tasks ask
    warm = instances(start(tokenizer, *names, folder=folder))
    assert len(built) == len(TASKS)
    assert warm == cold
    for old, new in zip(chain(*cold), chain(*warm), strict=True):
        assert type(new) is Instance
        assert exactly(vars(new)) == exactly(vars(old))


@pytest.mark.parametrize("template", [False, True])
def test_scores_are_equal_and_nothing_is_tokenised_again(
    folder: Path, tokenizer: Any, trained: Any, encoded: list[str], template: bool
) -> None:
    settings = {"folder": folder, "chat_template": template, "system_instruction": "Be brief."}
    harness = start(tokenizer, *TASKS, "both", **settings)
    few = score(harness, trained, {"choice": [0, 3], "answer": [1]})
    cold = score(harness, trained)
    assert encoded
    encoded.clear()
    again = start(tokenizer, *TASKS, "both", **settings)
    assert score(again, trained, {"choice": [0, 3], "answer": [1]}) == few
    assert score(again, trained) == cold
    assert encoded == []


def test_another_length_has_other_tokens(
    folder: Path, tokenizer: Any, trained: Any, encoded: list[str]
) -> None:
    requests = [TaskRequest(name=name, folder=folder) for name in ("text", "answer")]
    cards = {}
    for length in (40, 60, 40, 60):
        harness = Harness(requests, tokenizer, budget=BatchBudget(256), max_length=length)
        encoded.clear()
        card = score(harness, trained)
        assert bool(encoded) == (length not in cards)
        assert cards.setdefault(length, card) == card
    assert cards[40] != cards[60]


# --- what the key is made of ------------------------------------------------------------------


def other_template(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template="{% for turn in messages %}[{{ turn['content'] }}]{% endfor %}",
    )


def other_special(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token="<pad>",
        bos_token="</s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=tokenizer.chat_template,
    )


Change = Callable[[Path, dict[str, Any]], None]


def edit_task(folder: Path, _: dict[str, Any]) -> None:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"doc_to_text": "{{q}}!"}))


def edit_document(folder: Path, _: dict[str, Any]) -> None:
    path = folder / "own.jsonl"
    path.write_text(path.read_text().replace("3?", "3!"))


def edit_example(folder: Path, _: dict[str, Any]) -> None:
    path = folder / "shots.jsonl"
    path.write_text(path.read_text().replace("3?", "3!"))


def edit_order(folder: Path, _: dict[str, Any]) -> None:
    path = folder / "own.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))


def setting(**changes: Any) -> Change:
    return lambda folder, settings: settings.update(changes)


def tokenizer_by(other: Callable[[Any], Any]) -> Change:
    return lambda folder, settings: settings.update(tokenizer=other(settings["tokenizer"]))


@pytest.mark.parametrize(
    "change",
    [
        *(edit_task, edit_document, edit_example, edit_order),
        *(tokenizer_by(other_template), tokenizer_by(other_special)),
        *(setting(num_fewshot=1), setting(num_fewshot=0), setting(seed=4)),
        *(setting(chat_template=True), setting(system_instruction="Think.")),
    ],
    ids=lambda change: getattr(change, "__name__", ""),
)
def test_each_ingredient_changes_the_key(
    change: Change, tmp_path: Path, tokenizer: Any, add_task: Any, built: list[str], cache: Path
) -> None:
    folder = tmp_path / "tasks"
    add_task(
        folder,
        "own",
        ROWS,
        **CLOZE,
        dataset_kwargs={"data_files": {"test": "own.jsonl", "train": "shots.jsonl"}},
        num_fewshot=2,
        fewshot_split="train",
    )
    (folder / "shots.jsonl").write_text((folder / "own.jsonl").read_text())
    settings: dict[str, Any] = {"tokenizer": tokenizer, "folder": folder}
    for _ in range(2):
        begin(settings)
    assert built == ["own"]
    change(folder, settings)
    changed, kept = begin(settings), begin(settings)
    assert built == ["own", "own"]
    assert len(list(cache.iterdir())) == 2
    assert kept == changed


def begin(settings: dict[str, Any]) -> list[list[Instance]]:
    rest = {name: value for name, value in settings.items() if name != "tokenizer"}
    return instances(start(settings["tokenizer"], "own", **rest))


def test_use_of_a_tokenizer_does_not_change_the_key(
    folder: Path, tokenizer: Any, built: list[str]
) -> None:
    start(tokenizer, "cloze", folder=folder)
    tokenizer(["one", "three"], padding="longest", truncation=True, max_length=4)
    start(tokenizer, "cloze", folder=folder)
    assert built == ["cloze"]


def test_template_that_writes_the_date_has_a_key_of_the_day(
    folder: Path, tokenizer: Any, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tomorrow(date):
        @classmethod
        def today(cls) -> date:
            return date(2222, 2, 2)

    dated = other_template(tokenizer)
    dated.chat_template = "{{ strftime_now('%d %b') }}" + dated.chat_template
    start(dated, "cloze", folder=folder, chat_template=True)
    start(dated, "cloze", folder=folder, chat_template=True)
    assert built == ["cloze"]
    monkeypatch.setattr("evomerge.scoring.fingerprints.date", Tomorrow)
    start(dated, "cloze", folder=folder, chat_template=True)
    assert built == ["cloze", "cloze"]


# --- tasks with code --------------------------------------------------------------------------

CODE = """\
import random
from pathlib import Path

import near

def ask(document):
    return near.loud(document["q"]) + Path(__file__).with_name("mark.txt").read_text()

def drawn(document):
    return document["q"] + str(random.random())
"""


@pytest.fixture
def coded(
    tmp_path: Path, add_task: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[str]]:
    """Starts the task whose questions that function of its folder asks; the prompts."""
    folder, beside = tmp_path / "coded", tmp_path / "beside"
    for function in ("ask", "drawn"):
        add_task(folder, function, ROWS, **{**CLOZE, "doc_to_text": "TEXT"})
        path = folder / f"{function}.yaml"
        path.write_text(path.read_text().replace("TEXT", f"!function code.{function}"))
    beside.mkdir()
    (beside / "near.py").write_text("def loud(text):\n    return text.upper()\n")
    (folder / "code.py").write_text(CODE)
    (folder / "mark.txt").write_text("?")
    monkeypatch.syspath_prepend(str(beside))
    monkeypatch.delitem(sys.modules, "near", raising=False)

    def load(function: str) -> list[str]:
        harness = start(tokenizer, function, folder=folder, code=True)
        return [one.args[0] for one in instances(harness)[0]]

    return load


@pytest.mark.parametrize("file", ["coded/code.py", "coded/mark.txt", "beside/near.py"])
def test_files_that_code_may_read_change_the_key(
    file: str, tmp_path: Path, coded: Any, built: list[str]
) -> None:
    assert coded("ask") == coded("ask")
    assert built == ["ask"]
    (tmp_path / file).write_text((tmp_path / file).read_text() + "\n")
    coded("ask")
    assert built == ["ask", "ask"]


def test_functions_of_one_module_are_told_apart() -> None:
    def maker(sign: str) -> Callable[[str], str]:
        return lambda text: text + sign

    functions = [maker("1"), maker("2"), lambda text: text, lambda text: text + "1", maker, exactly]
    functions += [partial(exactly, 1), partial(exactly, 2), partial(exactly, value=2)]
    described = [repr(_described(function, {})) for function in functions]
    assert len(set(described)) == len(functions)
    assert described == [repr(_described(function, {})) for function in functions]
    with pytest.raises(NotKept, match="neither a function nor a class"):
        _described(print, {})


def test_code_that_draws_from_the_global_state_is_run_each_time(
    coded: Any, built: list[str], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert coded("drawn") == coded("drawn")  # the seed is set before
    assert built == ["drawn", "drawn"]
    assert not cache.exists()
    assert "'drawn': its requests are built at each start, for its code draws" in caplog.text


# --- what is not kept, and what is damaged ----------------------------------------------------


@pytest.mark.parametrize("value", [(1, 2), {1: "a"}, b"a", {"a": [date(2020, 1, 1)]}])
def test_what_json_cannot_hold(value: Any) -> None:
    with pytest.raises(NotKept, match="JSON"):
        exact_json({"value": value})


@pytest.mark.parametrize("value", [{"a": [1, 1.5, True, None, "é\ud800"]}, 2**70, 1e-320, {}])
def test_what_json_can_hold(value: Any) -> None:
    assert exactly(json.loads(exact_json(value))) == exactly(value)


def test_documents_that_json_cannot_hold_are_not_kept(
    tmp_path: Path,
    tokenizer: Any,
    add_task: Any,
    built: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    folder = add_task(tmp_path / "tasks", "timed", [{**row, "t": "2020-01-01"} for row in ROWS])
    path = folder / "timed.yaml"
    content = yaml.safe_load(path.read_text()) | CLOZE | {"process_docs": "CODE"}
    path.write_text(yaml.safe_dump(content).replace("CODE", "!function code.timed"))
    (folder / "code.py").write_text(
        "import datasets\n"
        "def timed(documents):\n"
        "    return documents.cast_column('t', datasets.Value('timestamp[s]'))\n"
    )
    cold = instances(start(tokenizer, "timed", folder=folder, code=True))
    assert instances(start(tokenizer, "timed", folder=folder, code=True)) == cold
    assert built == ["timed", "timed"]
    assert "'timed': its requests are built at each start, for JSON cannot hold a" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_torn_file_is_made_again(
    damage: str,
    folder: Path,
    tokenizer: Any,
    trained: Any,
    built: list[str],
    encoded: list[str],
    cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = start(tokenizer, "choice", folder=folder)
    cold = deepcopy(instances(harness))  # scoring adds answers
    card = score(harness, trained)
    files = {path: path.read_bytes() for path in cache.glob("*/*")}
    assert len(files) == 3  # the requests, and the tokens of either block
    for path, content in files.items():
        middle = len(content) // 2
        torn = content[:middle] + bytes(9) + content[middle + 9 :]
        path.write_bytes({"cut": content[:middle], "changed": torn, "empty": b""}[damage])
    encoded.clear()
    again = start(tokenizer, "choice", folder=folder)
    assert instances(again) == cold
    assert score(again, trained) == card
    assert built == ["choice", "choice"]
    assert encoded
    assert "its requests are built again" in caplog.text
    assert "its texts are tokenised again" in caplog.text
    assert {path: path.read_bytes() for path in cache.glob("*/*.json.gz")} == {
        path: content for path, content in files.items() if path.suffix == ".gz"
    }
    encoded.clear()
    third = start(tokenizer, "choice", folder=folder)
    assert score(third, trained) == card
    assert (len(built), encoded) == (2, [])


def test_a_cache_that_cannot_be_written(
    folder: Path, tokenizer: Any, trained: Any, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder would be")
    harness = start(tokenizer, "choice", folder=folder)
    score(harness, trained)
    assert "'choice': its requests are not kept" in caplog.text


def test_nothing_is_pickled(
    folder: Path, tokenizer: Any, trained: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("pickled")

    for name in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(pickle, name, refuse)
    for _ in range(2):
        harness = start(tokenizer, "choice", "answer", folder=folder)
        score(harness, trained)
    for path in cache.glob("*/*"):
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as file:
                headers = [file.read(name)[:80] for name in file.namelist()]
            assert all(b"'descr': '<i4'" in one or b"'descr': '|u1'" in one for one in headers)
        else:
            json.loads(gzip.decompress(path.read_bytes()))


def test_a_refused_system_turn_is_told_at_each_start(
    folder: Path, tokenizer: Any, built: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    strict = other_template(tokenizer)
    refusal = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    strict.chat_template = refusal + strict.chat_template
    settings = {"folder": folder, "chat_template": True, "system_instruction": "Hello."}
    for _ in range(2):
        caplog.clear()
        start(strict, "cloze", **settings)
        assert "refuses a system turn" in caplog.text
    assert built == ["cloze"]


# --- names of lm-eval's own tasks ---------------------------------------------------------------


def entries(manager: TaskManager) -> dict[str, Any]:
    return {
        name: (entry.name, entry.kind, entry.yaml_path, entry.tags)
        for name, entry in manager.task_index.items()
    }


def test_names_of_built_in_tasks_are_those_of_lm_eval(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    cold = built_in_tasks()
    with monkeypatch.context() as patch:
        patch.setattr(
            "lm_eval.tasks._index.load_yaml", lambda *_, **__: pytest.fail("a file was read")
        )
        warm = built_in_tasks()
    assert len(cold.all_tasks) > 10_000
    assert list(entries(warm).items()) == list(entries(cold).items())
    for names in ("all_tasks", "all_subtasks", "all_groups", "all_tags"):
        assert getattr(warm, names) == getattr(cold, names)
    loaded = []
    monkeypatch.setattr(ConfigurableTask, "__init__", lambda self, config: loaded.append(config))
    monkeypatch.setattr(ConfigurableTask, "task_name", property(lambda self: str(id(self))))
    for manager in (cold, warm):
        for name in ("mmlu", "ai2_arc", "arc_easy"):  # a group of groups, a tag, a task
            manager.load([name])
        loaded.append(None)
    middle = loaded.index(None)
    assert middle > 57
    assert loaded[:middle] == loaded[middle + 1 : -1]


def test_names_are_read_again_where_a_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cache: Path
) -> None:
    root = tmp_path / "lm_eval" / "tasks"
    root.mkdir(parents=True)
    (root / "a.yaml").write_text("task: a\ntag: [letters]\n")
    monkeypatch.setattr(lm_eval.tasks, "__file__", str(root / "__init__.py"))
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(root / "manager.py"))
    assert built_in_tasks().all_tasks == ["a", "letters"]
    (kept,) = cache.iterdir()
    kept.write_text("[[")
    assert built_in_tasks().all_tasks == ["a", "letters"]
    assert "are searched again" in caplog.text
    assert built_in_tasks().task_index["letters"].tags == {"a"}
    (root / "b.yaml").write_text("task: b\n")
    assert built_in_tasks().all_tasks == ["a", "b", "letters"]
    assert task_names._stamp(root) in "".join(path.name for path in cache.iterdir())

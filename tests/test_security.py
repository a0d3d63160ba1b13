"""No code without being asked, no pickle, and no secret in what a run keeps."""

import ast
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.storages.journal._base import BaseJournalSnapshot

from evomerge import UserError, export, load_config, search
from evomerge.dashboard.kept_page import write_report
from evomerge.dashboard.server import ReadOnlyJournal
from evomerge.describe import describe_run
from evomerge.notify import KEPT_NOTIFY
from evomerge.report import read_run
from evomerge.searching.journal import RunJournal
from evomerge.searching.storage import storage_of, without_password
from evomerge.typed_yaml import with_value

PACKAGE = Path(__file__).parent.parent / "evomerge"
FILES = sorted(PACKAGE.rglob("*.py"))
SECRET = "s3cr3t-canary"


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, call) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        roots = {name.partition(".")[0] for name in names}
        assert not roots & {
            "pickle",
            "cPickle",
            "dill",
            "cloudpickle",
            "joblib",
            "shelve",
            "marshal",
        }
    for name, call in calls(path):
        words = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert name not in ("eval", "exec", "compile", "os.system", "torch.save"), name
        assert name not in ("torch.load", "pd.read_pickle", "yaml.unsafe_load", "yaml.full_load")
        if name in ("np.load", "np.savez", "np.savez_compressed"):
            assert words["allow_pickle"] == "False", name
        if name == "yaml.load":
            assert "Safe" in words["Loader"]
        if name == "subprocess.run":
            assert words.get("shell", "False") == "False"


def test_the_studys_journals_keep_no_pickled_snapshot() -> None:
    assert not issubclass(RunJournal, BaseJournalSnapshot)
    assert not issubclass(ReadOnlyJournal, BaseJournalSnapshot)


def test_reading_a_run_unpickles_nothing(small: Callable[..., Path]) -> None:
    outcome = search(small(trials=3))
    seen: list[Any] = []
    watching = True

    def watch(event: str, arguments: Any) -> None:
        if watching and event == "pickle.find_class":
            seen.append(arguments)

    sys.addaudithook(watch)
    describe_run(outcome.folder)
    read_run(outcome.folder).trials()
    write_report(outcome.folder)
    watching = False
    assert seen == []


def holding_the_secret(folder: Path) -> list[str]:
    """Files in which it stands, and places in databases."""
    return [str(p) for p in folder.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


@pytest.mark.parametrize("target", [f"http://127.0.0.1:9/{SECRET}", f"test {SECRET} = x"])
def test_no_secret_is_kept(
    small: Callable[..., Path],
    tmp_path: Path,
    target: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    database = tmp_path / "study.db"
    path = small(f"storage: sqlite:///{database}\nnotify: {target!r}  # tells us\n", trials=4)
    outcome = search(path)
    storage = f"sqlite:///{database}"
    out = export(outcome.folder, tmp_path / "winner", storage=storage)
    write_report(outcome.folder, storage=storage)
    told = describe_run(outcome.folder, storage)
    assert holding_the_secret(outcome.folder) == []
    assert holding_the_secret(out) == []
    assert holding_the_secret(database.parent) == [str(path)]  # the user's own file
    assert SECRET not in told
    notified = [r.getMessage() for r in caplog.records if r.name == "evomerge.notify"]
    assert notified
    assert SECRET not in " ".join(notified)
    kept = load_config(outcome.folder / "config.yaml").config
    assert kept.notify is None
    assert kept.storage == storage


@pytest.mark.parametrize(
    "text",
    ['notify: "a \\"b\\""   # c', "notify: >\n  a\n  b", "notify: a # c", "notify: |\n  a\n"],
)
def test_a_value_is_replaced_however_it_is_written(text: str) -> None:
    changed = with_value(f"x: 1\n{text}\ny: 2\n", "notify", f'"{KEPT_NOTIFY}"')
    assert yaml.safe_load(changed) == {"x": 1, "notify": KEPT_NOTIFY, "y": 2}
    assert with_value("x: 1\n", "notify", "2") == "x: 1\n"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+nosuch://user:{SECRET}@host/db",
        f"nosuch://user:{SECRET}@host/db",
        f"postgresql://user:{SECRET}@host:port/db",
        f"sqlite://user:{SECRET}@/x",
        f"redis://user:{SECRET}@127.0.0.1:1/0",
    ],
)
def test_a_storage_that_cannot_be_opened_is_named_without_its_password(url: str) -> None:
    assert SECRET not in without_password(url)
    with pytest.raises(UserError) as refused:
        storage_of(url)
    assert SECRET not in str(refused.value)


def test_the_environment_is_not_recorded() -> None:
    from evomerge.environment import environment

    os.environ["EVOMERGE_CANARY"] = SECRET
    try:
        assert SECRET not in str(environment())
    finally:
        del os.environ["EVOMERGE_CANARY"]

"""The command line: every verb's help has an example, and mistakes are sentences."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import evomerge
from evomerge.cli import app
from evomerge.config import load_config

FAMILY = Path(__file__).parent.parent / "configs" / "quickstart" / "models"
VERBS = ["init", "check", "search", "status", "trials", "score", "merge", "export", "plot"]


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


def test_the_public_names() -> None:
    assert sorted(evomerge.__all__) == [
        "CandidateError",
        "EvomergeError",
        "Recipe",
        "SearchError",
        "UserError",
        "export",
        "load_config",
        "merge",
        "read_run",
        "score",
        "search",
    ]
    for name in evomerge.__all__:
        assert callable(getattr(evomerge, name)), name


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example(verb: str) -> None:
    code, text = run(verb, "--help")
    assert code == 0
    assert f"Example: evomerge {verb}" in " ".join(text.split())


def test_init_writes_a_valid_configuration(tmp_path: Path) -> None:
    code, text = run("init", FAMILY / "base", FAMILY / "dial", FAMILY / "past")
    assert code == 0, text
    assert list(yaml.safe_load(text)["sources"]) == ["dial", "past"]
    (tmp_path / "mine.yaml").write_text(text)
    assert load_config(tmp_path / "mine.yaml").config.space.depth == "layers"


def test_check_tells_what_is_known(small: Callable[..., Path]) -> None:
    code, text = run("check", small(depth="layers"))
    assert code == 0, text
    for words in (
        "10 parameters",
        "sampler  trust_region",
        "8 search and 8 holdout",
        "GB/s",
        "as measured",
        "s per trial: 16",
    ):
        assert words in text


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    code, text = run("check", tmp_path / "none.yaml")
    assert code == 1
    assert "cannot be read" in text
    code, text = run("status", tmp_path)
    assert code == 1
    assert "expected the output folder of a search" in " ".join(text.split())


def test_a_search_in_another_storage(small: Callable[..., Path], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    code, text = run("search", small(f"storage: {url}\n", trials=4))
    assert code == 0, text
    assert "4 complete" in text
    code, text = run("status", tmp_path / "run", "--storage", url)
    assert code == 0, text
    assert "4 complete" in text

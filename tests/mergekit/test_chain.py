"""Files with several merges: made in order, results in between removed, the last written."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.errors import UserError
from evomerge.mergekit.chain import in_order, is_chain, merge_chain
from evomerge.mergekit.reading import read_recipe
from tests.mergekit.goldens import assert_equal, chains

CHAINS = chains()


def written(name: str, sources: Path, folder: Path) -> Path:
    """The chain as a file that lies beside the sources."""
    path = sources / f"{folder.name}.yml"
    path.write_text(yaml.safe_dump_all(CHAINS[name], sort_keys=False))
    return path


@pytest.mark.parametrize("name", CHAINS)
def test_the_last_is_what_mergekit_makes(
    name: str, sources: Path, tmp_path: Path, goldens: dict[str, torch.Tensor]
) -> None:
    out = merge_chain(written(name, sources, tmp_path), tmp_path / "out", device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left in between"
    merged = load_file(out / "model.safetensors")
    assert_equal(merged, goldens, f"chain/{name}")
    # The copy of the chain makes the same again, wherever it is called from.
    again = merge_chain(out / "mergekit.yml", tmp_path / "again", keep=True, device="cpu")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    between = {path.name for path in (tmp_path / "again-between").iterdir()}
    assert between == {each["name"] for each in CHAINS[name] if "name" in each}


def test_on_the_command_line(sources: Path, tmp_path: Path) -> None:
    path = written("out of order", sources, tmp_path)
    assert is_chain(path)
    result = CliRunner().invoke(app, ["merge", str(path), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    again = CliRunner().invoke(app, ["merge", str(path), str(tmp_path / "out")])
    assert again.exit_code == 1
    assert "exists" in again.output
    with pytest.raises(UserError, match="no single recipe can say"):
        read_recipe(path)


def test_a_failure_leaves_nothing(sources: Path, tmp_path: Path) -> None:
    broken = [{**CHAINS["out of order"][0], "name": "one"}, {"merge_method": "ties"}]
    broken[1] |= {"base_model": "one", "models": [{"model": "dial"}]}
    path = sources / "broken.yml"
    path.write_text(yaml.safe_dump_all(broken))
    with pytest.raises(UserError, match=r"merge 2 \(out\): parameters: weight is not given"):
        merge_chain(path, tmp_path / "out", device="cpu")
    assert not list(tmp_path.iterdir())


def linear(*models: str, **more: Any) -> dict[str, Any]:
    listed = [{"model": model} for model in models]
    return {"merge_method": "linear", "models": listed, "parameters": {"weight": 0.5}, **more}


def test_order() -> None:
    first, second, third = linear("x", name="a"), linear("a", name="b"), linear("b", "a")
    assert in_order([third, second, first]) == [first, second, third]
    assert in_order([second, first]) == [first, second], "the only one that no other is made of"


MISTAKES = {
    "a name twice": ([linear("x", name="a"), linear("y", name="a"), linear("a")], "stands twice"),
    "two results": ([linear("x"), linear("y")], "2 merges have no name"),
    "two ends": ([linear("x", name="a"), linear("y", name="b")], "a, b; expected one"),
    "a circle": ([linear("b", name="a"), linear("a", name="b"), linear("a")], "made of itself"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str) -> None:
    documents, words = MISTAKES[mistake]
    with pytest.raises(UserError, match=words):
        in_order(documents)

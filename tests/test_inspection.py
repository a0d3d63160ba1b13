"""Inspection against plain torch, and models that are odd or cannot be merged."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from evomerge.checkpoints.source import Checkpoint
from evomerge.cli import app
from evomerge.inspection import inspect
from evomerge.methods.spectrum import effective_rank

FAMILY = Path(__file__).parent.parent / "configs" / "quickstart" / "models"
BASE = str(FAMILY / "base")


def deltas(name: str) -> dict[str, torch.Tensor]:
    base, source = (Checkpoint(FAMILY / each) for each in ("base", name))
    return {n: source.read(n).double() - base.read(n).double() for n in base.tensors}


def test_figures_are_those_of_plain_torch() -> None:
    found = inspect(BASE, [str(FAMILY / n) for n in ("dial", "past")], ["dial", "past"])
    assert found.problems == ()
    assert found.remarks == ()
    dial, past = deltas("dial"), deltas("past")
    name = "model.layers.2.mlp.up_proj.weight"
    row = found.vectors.query("tensor == @name and source == 'past'").iloc[0]
    assert row["norm"] == pytest.approx(float(past[name].norm()))
    sigma = torch.linalg.svdvals(past[name])
    assert row["stable_rank"] == pytest.approx(float((sigma**2).sum() / sigma[0] ** 2), rel=0.05)
    shares = sigma / sigma.sum()
    entropy = -sum(float(share) * math.log(float(share)) for share in shares if share > 0)
    assert row["effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-6)
    layer = [n for n in dial if ".layers.2." in n]
    one, two = (torch.cat([d[n].flatten() for n in layer]) for d in (dial, past))
    table = found.table().set_index("layer").loc[2]
    one_part, two_part = (
        torch.cat([d[n].flatten() for n in layer if "mlp" in n]) for d in (dial, past)
    )
    cosines = found.cosines().set_index(["layer", "part"])
    expected = float(one_part @ two_part / one_part.norm() / two_part.norm())
    assert cosines.loc[(2, "mlp"), "dial·past"] == pytest.approx(expected, rel=1e-5)
    pair = found.pairs.query("tensor == @name").iloc[0]
    whole = float((dial[name] * past[name]).sum() / dial[name].norm() / past[name].norm())
    assert pair["cosine"] == pytest.approx(whole, rel=1e-5)
    assert table["cosine"] == pytest.approx(float(one @ two / one.norm() / two.norm()), rel=1e-5)
    both = (one != 0) & (two != 0)
    opposed = both & (one.sign() != two.sign())
    assert table["conflicts"] == pytest.approx(int(opposed.sum()) / int(both.sum()))


def test_effective_ranks_can_be_left_out() -> None:
    found = inspect(BASE, [str(FAMILY / "dial")], ["dial"], rank=False)
    assert "stable_rank" in found.table()
    assert "effective_rank" not in found.table()


def test_the_effective_rank_counts_equal_singular_values() -> None:
    assert effective_rank(torch.eye(7, 9)) == pytest.approx(7)
    left = torch.linalg.qr(torch.randn(40, 5, generator=torch.Generator().manual_seed(0)))[0]
    assert effective_rank(left @ left.T) == pytest.approx(5, rel=1e-4)
    assert effective_rank(torch.full((3, 4), 2.0)) == pytest.approx(1, rel=1e-4)
    assert math.isnan(effective_rank(torch.zeros(3, 4)))
    assert math.isnan(effective_rank(torch.zeros(0, 4)))


def test_the_base_and_copies_are_pointed_out(tmp_path: Path) -> None:
    shutil.copytree(FAMILY / "dial", tmp_path / "copy")
    sources = [str(FAMILY / "base"), str(FAMILY / "dial"), str(tmp_path / "copy")]
    found = inspect(BASE, sources, ["same", "dial", "copy"])
    assert set(found.remarks) == {
        "same is the base itself",
        "dial and copy are copies of each other",
    }


def test_every_difference_is_told_in_words_and_the_exit_code_is_1(tmp_path: Path) -> None:
    shutil.copytree(FAMILY / "dial", tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "num_hidden_layers": 9, "hidden_size": 7}))
    done = CliRunner().invoke(app, ["inspect", BASE, str(tmp_path / "other")])
    assert done.exit_code == 1
    assert "depth: config.json says num_hidden_layers 9; the base has 4" in done.stdout
    assert "width: config.json says hidden_size 7" in done.stdout


def test_the_command_writes_json_and_a_picture(tmp_path: Path) -> None:
    sources = [str(FAMILY / "dial"), str(FAMILY / "past")]
    options = ["--full", "--json", str(tmp_path / "i.json"), "--picture", str(tmp_path / "i.png")]
    done = CliRunner().invoke(app, ["inspect", BASE, *sources, *options])
    assert done.exit_code == 0, done.output
    assert "attention" in done.stdout
    assert "dial·past" in done.stdout
    figures = json.loads((tmp_path / "i.json").read_text())
    assert len(figures["vectors"]) == 2 * 38
    assert figures["vectors"][0]["effective_rank"] > 1
    assert -1 <= figures["pairs"][0]["cosine"] <= 1
    assert (tmp_path / "i.png").stat().st_size > 10_000

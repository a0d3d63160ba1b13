"""Models of several types merge as their copies in float32 do."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.source import WEIGHTS
from evomerge.merging.models import open_models
from evomerge.merging.plan import merged_tensors
from evomerge.merging.workspace import Workspace
from evomerge.methods import look_up
from evomerge.methods.apply import merge_tensor
from evomerge.methods.compiled import choose_pass
from evomerge.methods.parameters import check_parameters
from evomerge.methods.statistics import TensorStatistics
from evomerge.recipe import DType, Model, Recipe, Rule
from tests.families import make_checkpoint

MIXED = {"base": torch.float32, "brain": torch.bfloat16, "half": torch.float16, "both": None}
"""Folder: its type; None: float16 and bfloat16 by turns, with a vector in float64."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixed family, and of each member a copy in float32 under `float32/`."""
    root = tmp_path_factory.mktemp("mixed")
    for seed, (name, dtype) in enumerate(MIXED.items()):
        folder = make_checkpoint("qwen2", root / name, seed, dtype or torch.float32)
        tensors = load_file(folder / WEIGHTS)
        if dtype is None:
            turns = (torch.float16, torch.bfloat16)
            tensors = {n: t.to(turns[i % 2]) for i, (n, t) in enumerate(tensors.items())}
            tensors["model.norm.weight"] = tensors["model.norm.weight"].double()
            save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        copy = make_checkpoint("qwen2", root / "float32" / name, seed)
        upcast = {n: tensor.float() for n, tensor in tensors.items()}
        save_file(upcast, copy / WEIGHTS, metadata={"format": "pt"})
    return root


def recipe(root: Path, method: str, dtype: DType) -> Recipe:
    sources = ("brain", "half", "both")
    return Recipe(
        base=Model(path=str(root / "base")),
        sources={name: Model(path=str(root / name)) for name in sources},
        rules=(Rule(method=method, sources=sources),),
        dtype=dtype,
    )


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "karcher", "sce"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mixed_types_merge_as_their_upcast_copies(folders: Path, method: str, dtype: DType) -> None:
    mixed, upcast = recipe(folders, method, dtype), recipe(folders / "float32", method, dtype)
    expected = dict(merged_tensors(upcast, open_models(upcast)))
    merged = dict(merged_tensors(mixed, open_models(mixed)))
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        assert merged[name].dtype == getattr(torch, dtype)
        assert torch.equal(merged[name], tensor), name


def test_the_live_model_holds_the_same(folders: Path) -> None:
    mixed, upcast = (recipe(root, "ties", "float16") for root in (folders, folders / "float32"))
    workspace = Workspace(open_models(mixed), dtype=torch.float16, device=torch.device("cpu"))
    workspace.load(mixed)
    live = workspace.model.state_dict()
    for name, tensor in merged_tensors(upcast, open_models(upcast)):
        assert torch.equal(live[name], tensor), name


def test_compiled_kernels_take_mixed_types() -> None:
    run, how = choose_pass(torch.device("cpu"), 0, "always")
    if how != "compiled":
        pytest.skip(how)
    generator = torch.Generator().manual_seed(0)
    types = (torch.float32, torch.bfloat16, torch.float16)
    stored = tuple(torch.randn(64, 128, generator=generator).to(dtype) for dtype in types)
    ties = look_up("ties")
    results = []
    for operands in (stored, tuple(tensor.float() for tensor in stored)):
        known = TensorStatistics(operands=operands, keys=())
        parameters = check_parameters(ties, {}, 2)
        results.append(merge_tensor(ties, operands[0], operands[1:], parameters, known, run=run))
    assert torch.equal(*results)

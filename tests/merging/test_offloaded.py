"""Candidates reach models that accelerate dispatched, in part or whole to the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from evomerge.errors import UserError
from evomerge.merging.layout import live_views, read_layout
from evomerge.merging.models import open_models
from evomerge.merging.offloaded import home, used_on
from evomerge.merging.placement import MemoryPlan
from evomerge.merging.plan import merged_tensors
from evomerge.merging.workspace import Workspace
from evomerge.recipe import Model, Recipe, Rule
from tests.families import VOCABULARY, make_checkpoint

CPU = torch.device("cpu")
FAMILIES = ["llama", "llama_tied", "qwen3_moe", "gpt2", "deepseek_v3"]


def load(folder: Path, **options: Any) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, **options)
    return model


def halves(model: PreTrainedModel, second: str) -> dict[str, Any]:
    """A device map: the second layer and the head on `second`, the rest on a device.

    For accelerate the name `cpu` is where to offload to, and this object a device like a GPU.
    """
    prefix = model.base_model_prefix
    parts: dict[str, Any] = {}
    for name, child in model.base_model.named_children():
        if isinstance(child, torch.nn.ModuleList):
            parts |= {f"{prefix}.{name}.0": CPU, f"{prefix}.{name}.1": second}
        else:
            parts[f"{prefix}.{name}"] = CPU
    return {**parts, "lm_head": second}


def everything(folder: Path) -> PreTrainedModel:
    model = load(folder)
    cpu_offload(model, execution_device=CPU)
    return model


def half_dispatched(folder: Path) -> PreTrainedModel:
    model = load(folder)
    dispatch_model(model, halves(model, "cpu"))
    return model


def half_loaded(folder: Path) -> PreTrainedModel:
    return load(folder, device_map=halves(load(folder), "cpu"))


def logits(model: PreTrainedModel) -> torch.Tensor:
    tokens = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        result: torch.Tensor = model(tokens).logits
    return result


@pytest.mark.parametrize("offload", [everything, half_dispatched, half_loaded])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_what_the_next_pass_uses(
    family: str, offload: Callable[[Path], PreTrainedModel], tmp_path: Path
) -> None:
    first, second = (make_checkpoint(family, tmp_path / str(n), seed=n) for n in (0, 1))
    layout = read_layout(first, torch.float32)
    model = offload(first)
    assert any(tensor.is_meta for tensor in model.parameters())
    for folder in (second, first, second):
        views, tensors = live_views(model, layout), load_file(folder / "model.safetensors")
        for name, slot in layout.canonical(tensors).items():
            views[slot].copy_(tensors[name])
        assert torch.equal(logits(model), logits(load(folder)))
    assert {used_on(model, slot.parameter) for slot in layout.slots.values()} == {CPU}


def test_what_lies_on_the_disk_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "model")
    plain = load(folder)
    places = {name: "cpu" if place == CPU else "disk" for name, place in halves(plain, "").items()}
    model = load(folder, device_map=places, offload_folder=str(tmp_path / "offloaded"))
    assert home(model, "model.layers.1.mlp.up_proj.weight") is None
    assert home(model, "model.layers.0.mlp.up_proj.weight") is not None
    with pytest.raises(UserError, match=r"'lm_head\.weight' is offloaded to the disk"):
        live_views(model, read_layout(folder, torch.float32))


def test_a_workspace_merges_into_an_offloaded_model(tmp_path: Path) -> None:
    base, tuned = (make_checkpoint("qwen3_moe", tmp_path / str(n), seed=n) for n in (0, 1))
    recipes = [
        Recipe(
            base=Model(path=str(base)),
            sources={"tuned": Model(path=str(tuned))},
            rules=(Rule(method="task_arithmetic", sources=("tuned",), parameters={"weight": w}),),
            dtype="float32",
        )
        for w in (0.3, 0.6)
    ]
    models = open_models(recipes[0])
    places = halves(load(base), "cpu")
    offloaded = Workspace(models, dtype=torch.float32, device=CPU, device_map=places)
    plain = Workspace(models, dtype=torch.float32, device=CPU)
    models.hold("device", offloaded.devices)
    for recipe in (*recipes, recipes[0]):
        offloaded.load(recipe)
        plain.load(recipe)
        assert torch.equal(logits(offloaded.model), logits(plain.model))
        for name, tensor in merged_tensors(recipe, models):
            held = home(offloaded.model, models.layout.slots[name].parameter)
            assert held is not None
            slot = models.layout.slots[name]
            assert torch.equal(held.as_strided(slot.shape, slot.strides, slot.offset), tensor)


GIB = 2**30


def plan(**changes: Any) -> MemoryPlan:
    numbers: dict[str, Any] = {"model_bytes": 30 * GIB, "operand_bytes": 40 * GIB}
    numbers |= {"free_bytes": 100 * GIB, "host_free_bytes": 100 * GIB, "device": "cuda:0"}
    return MemoryPlan(**{**numbers, "spread": True, **changes})


@pytest.mark.parametrize(
    ("changes", "placement", "offloaded"),
    [
        ({}, "device", 0),
        ({"operand_bytes": 60 * GIB}, "host", 0),
        ({"model_bytes": 120 * GIB}, "host", 40),
        ({"model_bytes": 120 * GIB, "operand_bytes": 50 * GIB}, "files", 40),
        ({"model_bytes": 120 * GIB, "spread": False}, "host", 0),
        ({"model_bytes": 120 * GIB, "device": "cpu"}, "files", 0),
    ],
)
def test_the_plan_counts_what_is_offloaded(
    changes: dict[str, Any], placement: str, offloaded: int
) -> None:
    made = plan(**changes)
    assert (made.placement, made.offloaded_bytes) == (placement, offloaded * GIB)
    said = f"({offloaded:.2f} GiB of it in the host's memory" in made.sentence()
    assert said == (offloaded > 0)

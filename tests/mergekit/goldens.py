"""What is kept of a merge: of each tensor its sum, its norm and the entries at fixed positions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
ENTRIES = 8
TOLERANCE = 1e-6
"""How far an entry may be from mergekit's."""


def cases(file: str) -> dict[str, Any]:
    """Name -> content, of a YAML file beside this one."""
    return dict(yaml.safe_load((HERE / file).read_text()))


def chains() -> dict[str, list[dict[str, Any]]]:
    """Name -> merges of one file, in which nothing is rounded."""
    found = cases("chains.yaml")
    return {name: [in_float32(each) for each in documents] for name, documents in found.items()}


def in_float32(content: Mapping[str, Any]) -> dict[str, Any]:
    """A merge of mergekit in which nothing is rounded."""
    return {**content, "dtype": "float32", "out_dtype": "float32"}


def summary(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`entries` float32 [tensors, ENTRIES] and `whole` float64 [tensors, 2], by order of name."""
    entries, whole = [], []
    for name in sorted(tensors):
        flat = tensors[name].flatten()
        at = torch.linspace(0, flat.numel() - 1, ENTRIES, dtype=torch.float64).round().long()
        entries.append(flat[at].float())
        wide = flat.double()
        whole.append(torch.stack([wide.sum(), wide.norm()]))
    return {"entries": torch.stack(entries), "whole": torch.stack(whole)}


def write_goldens(facts: Mapping[str, Any], made: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """goldens.json: what was asked; goldens.safetensors: summaries of what mergekit made."""
    text = json.dumps(facts, indent=1)
    (HERE / "goldens.json").write_text(text + "\n")
    flat = {f"{name}/{key}": t for name, each in made.items() for key, t in summary(each).items()}
    save_file(flat, HERE / "goldens.safetensors")


def read_goldens() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Inverse of `write_goldens`."""
    facts = json.loads((HERE / "goldens.json").read_text())
    return facts, load_file(HERE / "goldens.safetensors")


def assert_equal(
    ours: Mapping[str, torch.Tensor],
    goldens: Mapping[str, torch.Tensor],
    name: str,
) -> None:
    """Compares every tensor with the golden `name`; sums by their average over the entries."""
    found = summary(ours)
    expected = goldens[f"{name}/entries"]
    torch.testing.assert_close(found["entries"], expected, atol=TOLERANCE, rtol=0)
    sizes = torch.tensor([[ours[tensor].numel()] for tensor in sorted(ours)], dtype=torch.float64)
    difference = (found["whole"] - goldens[f"{name}/whole"]).abs() / sizes
    assert float(difference.max()) < TOLERANCE, (
        f"sum or norm of tensor {int(difference.argmax()) // 2}"
    )

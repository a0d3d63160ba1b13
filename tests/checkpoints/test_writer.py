"""What the streaming writer writes is what the library's own writer would."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.writer import Spec, write_weights

TENSORS = {
    "odd": torch.randn(3, 5).to(torch.bfloat16),
    "wide": torch.randn(4, 2),
    "none": torch.zeros(0, 7),
    "number": torch.tensor(3.5),
    "half": torch.randn(9).to(torch.float16),
    "count": torch.arange(5),
    "strided": torch.randn(6, 4).t(),
    "flags": torch.tensor([True, False, True]),
}
SPECS = {name: Spec(shape=tuple(t.shape), dtype=t.dtype) for name, t in TENSORS.items()}


def same(loaded: dict[str, torch.Tensor], names: set[str]) -> None:
    assert set(loaded) == names
    for name, tensor in loaded.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])


def test_one_file_loads_as_the_library_s_own(tmp_path: Path) -> None:
    write_weights(tmp_path, SPECS, TENSORS.items())
    path = tmp_path / "model.safetensors"
    same(load_file(path), set(TENSORS))
    save_file({n: t.contiguous() for n, t in TENSORS.items()}, tmp_path / "theirs.safetensors")
    assert abs(path.stat().st_size - (tmp_path / "theirs.safetensors").stat().st_size) < 64
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards_hold_every_tensor_once(tmp_path: Path) -> None:
    write_weights(tmp_path, SPECS, TENSORS.items(), shard_bytes=64)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(TENSORS)
    assert index["metadata"]["total_size"] == sum(spec.bytes for spec in SPECS.values())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    for file in files:
        same(load_file(tmp_path / file), {n for n, f in index["weight_map"].items() if f == file})


def test_no_more_than_one_tensor_is_asked_for_ahead(tmp_path: Path) -> None:
    written: list[int] = []

    def stream() -> object:
        for name, tensor in TENSORS.items():
            written.append(sum(f.stat().st_size for f in tmp_path.glob("*.safetensors")))
            yield name, tensor

    write_weights(tmp_path, SPECS, stream(), shard_bytes=16)  # type: ignore[arg-type]
    assert written == sorted(written)
    assert written[0] == 0

"""Broken or unsuitable models are refused with a sentence, before the first trial."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge import Recipe, UserError, merge, score, search
from evomerge.checkpoints.source import INDEX, WEIGHTS, Checkpoint
from evomerge.checkpoints.writer import Spec, new_folder, write_weights
from evomerge.recipe import Model, Rule

FAMILY = Path(__file__).parent.parent.parent / "configs" / "quickstart" / "models"
Spoil = Callable[[Path], None]


def edit_config(**changes: object) -> Spoil:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return spoil


def truncate(folder: Path) -> None:
    with (folder / WEIGHTS).open("rb+") as file:
        file.truncate(5000)


def absurd_header(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**60) + content[8:])


def outside_index(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../../secret.safetensors"}}
    (folder / INDEX).write_text(json.dumps(index))


def pickled_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def fewer_layers(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    kept = {name: value for name, value in tensors.items() if ".layers.3." not in name}
    save_file(kept, folder / WEIGHTS)


def fewer_rows(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({n: t[:65] if "embed" in n else t for n, t in tensors.items()}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (edit_config(model_type="mistral"), "architecture: .*'mistral'; the base has 'llama'"),
        (edit_config(num_hidden_layers=7), "depth: .* 7; the base has 4"),
        (edit_config(tie_word_embeddings=False), "tying of the embeddings: .* False"),
        (truncate, "is damaged or cut off"),
        (absurd_header, "is damaged or cut off"),
        (outside_index, "points outside the folder"),
        (pickled_only, "has only pickled weights"),
        (no_weights, "has neither model.safetensors"),
        (fewer_layers, "lacks tensors that the base model has"),
        (fewer_rows, "token '\\]' has number 65, but the embeddings have only 65 rows"),
    ],
)
def test_a_bad_source_is_refused_before_the_first_trial(
    small: Callable[..., Path], tmp_path: Path, spoil: Spoil, message: str
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(FAMILY / "past", bad)
    spoil(bad)
    path = small()
    path.write_text(path.read_text().replace(str(FAMILY / "past"), str(bad)))
    with pytest.raises(UserError, match=message):
        search(path)


def test_a_base_without_tokenizer_is_refused(small: Callable[..., Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(FAMILY / "base", bad, ignore=shutil.ignore_patterns("tokenizer*"))
    path = small()
    path.write_text(path.read_text().replace(str(FAMILY / "base"), str(bad)))
    with pytest.raises(UserError, match="has no tokenizer"):
        search(path)


def test_a_base_that_needs_remote_code_is_refused(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(FAMILY / "base", bad)
    edit_config(
        model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    )(bad)
    with pytest.raises(UserError, match="custom code"):
        score(bad, small())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  capital: {folder", "  captial: {folder", "captial.*did you mean .?capital"),
        ("limit: 16", "metric: acc_nrm", "acc_nrm"),
        ("limit: 16", "limit: 1", "expected at least 2"),
    ],
)
def test_bad_tasks_are_refused(
    small: Callable[..., Path], old: str, new: str, message: str
) -> None:
    path = small()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        search(path)


def test_an_unwritable_run_folder_is_refused(small: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be written"):
        search(small())


def recipe(**models: str) -> Recipe:
    rule = Rule(method="linear", sources=("a",))
    return Recipe(
        base=Model(path=str(FAMILY / "base")),
        sources={"a": Model(path=str(FAMILY / "past"), **models)},
        rules=(rule,),
    )


def test_other_weights_than_the_recipe_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the weights have changed"):
        merge(recipe(sha256="0" * 64), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_export_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    def full_disk(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    old = tmp_path / "out"
    old.mkdir()
    (old / "recipe.yaml").write_text("the old one")
    with pytest.raises(OSError, match="No space"), new_folder(old, force=True) as folder:
        full_disk(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (old / "recipe.yaml").read_text() == "the old one"


def test_shards_and_their_index_read_back(tmp_path: Path) -> None:
    tensors = {f"t{n}": torch.full((10,), float(n)) for n in range(5)}
    specs = dict.fromkeys(tensors, Spec(shape=(10,), dtype=torch.float32))
    write_weights(tmp_path, specs, iter(tensors.items()), shard_bytes=80)
    (tmp_path / "config.json").write_text("{}")
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    read = Checkpoint(tmp_path)
    assert all(torch.equal(read.read(name), tensor) for name, tensor in tensors.items())

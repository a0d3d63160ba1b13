"""mergekit's YAML makes here what it makes there; goldens.json says how that was found out."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge.errors import UserError
from evomerge.mergekit.reading import from_mergekit, is_mergekit_file, read_recipe
from evomerge.recipe import Piece, Recipe
from tests.mergekit.goldens import assert_equal, read_goldens

Weights = Callable[[Recipe], dict[str, torch.Tensor]]
READ: dict[str, dict[str, Any]] = read_goldens()[0]["read"]


@pytest.mark.parametrize("name", READ)
def test_merges_what_mergekit_merges(
    name: str, sources: Path, weights: Weights, goldens: dict[str, torch.Tensor]
) -> None:
    recipe = from_mergekit(READ[name], sources)
    assert_equal(weights(recipe), goldens, f"read/{name}")


def test_rules_are_few(sources: Path) -> None:
    assert len(from_mergekit(READ["linear"], sources).rules) == 1
    by_depth = from_mergekit(READ["task_arithmetic, gradients"], sources)
    assert len(by_depth.rules) == 5, "one per layer, one for the ends"
    by_part = from_mergekit(READ["linear, filters per model"], sources)
    labels = [rule.label() for rule in by_part.rules]
    assert "layers 0-3 attention" in labels


def test_layers_as_they_are_are_no_merge(sources: Path) -> None:
    recipe = from_mergekit(READ["stack with layers that add nothing"], sources)
    assert recipe.stack == (
        Piece(source="base", layers=(0, 1, 2)),
        Piece(source="past", layers=(1, 2), scale=0.0),
        Piece(source="past", layers=(3,)),
    )
    merged = from_mergekit(READ["stack of merged layers, linear"], sources)
    assert merged.stack == (Piece(source="merged", layers=(0, 1, 2, 1, 2, 3)),)


def test_vocabularies(sources: Path) -> None:
    def read(**more: Any) -> str:
        return from_mergekit(two(**more), sources).vocabulary

    assert read() == read(tokenizer_source="base") == read(tokenizer={"source": "dial"}) == "base"
    assert read(tokenizer_source="union") == read(tokenizer={}) == "union"
    assert read(tokenizer_source="past") == read(tokenizer={"source": "past"}) == "past"


def test_a_file_is_read_from_where_it_lies(sources: Path) -> None:
    path = sources / "merge.yml"
    path.write_text(yaml.safe_dump(READ["linear"]))
    assert is_mergekit_file(path)
    recipe = read_recipe(path)
    assert Path(recipe.base.path) == sources / "dial"
    assert recipe.dtype == "float32"
    written = sources / "recipe.yaml"
    recipe.write(written)
    assert not is_mergekit_file(written)
    assert read_recipe(written).rules == recipe.rules


def test_dtype_is_the_outputs_else_the_inputs_else_the_models(sources: Path) -> None:
    models = {"merge_method": "passthrough", "models": [{"model": "dial"}]}
    assert from_mergekit(models, sources).dtype == "float32"
    assert from_mergekit({**models, "dtype": "float16"}, sources).dtype == "float16"
    both = {**models, "dtype": "float32", "out_dtype": "bfloat16"}
    assert from_mergekit(both, sources).dtype == "bfloat16"
    with pytest.raises(UserError, match=r"float8.*expected one of float32"):
        from_mergekit({**models, "dtype": "float8"}, sources)


def test_an_adapter_on_the_base_is_a_source(sources: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    content = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": f"base+{adapter}", "parameters": {"weight": 0.5}}],
    }
    recipe = from_mergekit(content, sources)
    assert recipe.sources["adapter"].path == str(adapter)
    content["models"] = [{"model": f"dial+{adapter}", "parameters": {"weight": 0.5}}]
    with pytest.raises(UserError, match="an adapter on a model other than base_model"):
        from_mergekit(content, sources)


def test_what_has_no_effect_is_said(sources: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        from_mergekit(READ["task_arithmetic, parameters without effect"], sources)
        from_mergekit({**READ["linear"], "chat_template": "auto"}, sources)
    for words in ("rescale has no effect", "lambda on a model has no effect", "int8_mask is left"):
        assert words in caplog.text
    assert "chat_template is left out" in caplog.text


def two(**more: Any) -> dict[str, Any]:
    models = [{"model": "dial", "parameters": {"weight": 1.0}}, {"model": "past"}]
    return {"merge_method": "linear", "models": models, "parameters": {"weight": 1.0}, **more}


def sliced(*ranges: tuple[int, int], **more: Any) -> dict[str, Any]:
    pieces = [{"sources": [{"model": "dial", "layer_range": list(span)}]} for span in ranges]
    return {"merge_method": "linear", "slices": pieces, "parameters": {"weight": 1.0}, **more}


def ties(weight: float, **parameters: Any) -> dict[str, Any]:
    models = [{"model": "dial", "parameters": {"weight": weight}}]
    content = {"merge_method": "ties", "base_model": "base", "models": models}
    return {**content, "parameters": parameters}


MISTAKES = {
    "rescaled ties": (ties(1.0, rescale=True), "rescale: true has no words here"),
    "a negative weight": (ties(-1.0), "expected normalize: false"),
    "an unknown key": (two(merge_metod=1), "merge_metod: not understood"),
    "an unknown parameter": (two(parameters={"weigth": 1.0}), "did you mean 'weight'"),
    "an unknown method": (two(merge_method="tise"), "did you mean 'ties'"),
    "another result": (two(merge_method="multislerp"), "log map"),
    "no weight": (two(parameters={}), "weight is not given for"),
    "no t": (two(merge_method="slerp", base_model="dial"), "t is not given for"),
    "a word for a number": (two(parameters={"weight": "much"}), "'much'; expected a number"),
    "models and slices": (two(slices=[]), "either models or slices"),
    "modules and models": (two(modules={"default": {}}), "stands beside"),
    "several modules": (
        {"merge_method": "linear", "modules": {"text": {}, "vision": {}}},
        "has text, vision; only models of one module",
    ),
    "a model twice": (two(models=[{"model": "dial"}] * 2), "stands twice"),
    "no models": (two(models=[]), "has no models"),
    "another model's tokenizer": (two(tokenizer_source="sort7"), "one of the merge's models"),
    "tokens": (two(tokenizer={"source": "base", "tokens": {}}), "tokenizer.tokens: not supported"),
    "a base for passthrough": (
        {"merge_method": "passthrough", "base_model": "base", "models": [{"model": "dial"}]},
        "passthrough takes one model",
    ),
    "a layer that is not there": (sliced((0, 5)), "layers 0 to 3"),
    "a range backwards": (sliced((3, 1)), r"layer_range \[3, 1\]"),
    "a layer merged in two ways": (
        sliced((0, 4), (2, 4), parameters={"weight": [0.5, 1.0], "normalize": False}),
        "layer 2 is merged in two ways",
    ),
    "a residual weight": (
        {
            "merge_method": "linear",
            "slices": [{"sources": [{"model": "a"}], "residual_weight": 0.5}],
        },
        "residual_weight: not supported",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str, sources: Path) -> None:
    content, words = MISTAKES[mistake]
    with pytest.raises(UserError, match=words):
        from_mergekit(content, sources)

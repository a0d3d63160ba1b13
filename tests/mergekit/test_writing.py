"""Recipes in mergekit's words: they are the golden ones, of which it made the golden tensors."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge.errors import UserError
from evomerge.mergekit.reading import from_mergekit, read_recipe
from evomerge.mergekit.writing import to_mergekit, write_mergekit
from evomerge.recipe import Model, Piece, Recipe, Rule
from tests.mergekit.goldens import assert_equal, cases, read_goldens
from tests.mergekit.sources import located, without_folder

Weights = Callable[[Recipe], dict[str, torch.Tensor]]
FACTS: dict[str, Any] = read_goldens()[0]
RECIPES = cases("recipes.yaml")


def recipe_of(name: str, sources: Path) -> Recipe:
    if name in RECIPES:
        return located(Recipe.from_mapping(RECIPES[name], name), sources)
    return from_mergekit(FACTS["read"][name], sources)


@pytest.mark.parametrize("name", FACTS["written"])
def test_mergekit_makes_of_the_words_what_the_recipe_makes(
    name: str, sources: Path, weights: Weights, goldens: dict[str, torch.Tensor]
) -> None:
    recipe, expected = recipe_of(name, sources), FACTS["written"][name]
    if expected is None:
        with pytest.raises(UserError, match="mergekit cannot express"):
            to_mergekit(recipe)
        return
    assert without_folder(to_mergekit(recipe), sources) == expected
    assert_equal(weights(recipe), goldens, f"written/{name}")


@pytest.mark.parametrize("name", RECIPES)
def test_the_words_are_read_again(name: str, sources: Path, weights: Weights) -> None:
    recipe = recipe_of(name, sources)
    again = from_mergekit(yaml.safe_load(FACTS["written"][name]), sources)
    ours, theirs = weights(recipe), weights(again)
    for tensor, value in ours.items():
        torch.testing.assert_close(theirs[tensor], value, atol=5e-7, rtol=0)


def family(*rules: Rule, sources: Path) -> Recipe:
    models = {name: Model(path=str(sources / name)) for name in ("dial", "past", "capital")}
    return Recipe(base=Model(path=str(sources / "base")), sources=models, rules=rules)


def test_all_that_has_no_words_is_listed(sources: Path) -> None:
    ends = ("embeddings", "final_norm", "head")
    recipe = family(
        Rule(method="tsv", sources=("dial", "past"), layers=(0, 1)),
        Rule(method="dare_ties", sources=("dial", "past"), layers=(2,)),
        Rule(method="ties", sources=("dial", "base"), parameters={"weight": -1.0}, layers=(3,)),
        Rule(method="linear", sources=("base",), parts=ends),
        sources=sources,
    )
    with pytest.raises(UserError) as caught:
        to_mergekit(recipe)
    for words in (
        "layers 0-1: tsv: it has no such method",
        "layers 2: dare_ties: its random masks are others",
        "layers 3: ties with a negative weight",
        "layers 3: the base among the sources of ties",
        "several methods in one merge: dare_ties, linear, ties, tsv",
    ):
        assert words in str(caught.value)


def test_a_lambda_that_mergekit_does_not_read(sources: Path) -> None:
    rule = Rule(method="sce", sources=("dial", "past"), parameters={"lambda": 0.5})
    with pytest.raises(UserError, match="all: sce has no lambda there"):
        to_mergekit(family(rule, sources=sources))


def test_pairs_that_slices_cannot_tell(sources: Path) -> None:
    ends = ("embeddings", "final_norm", "head")
    half = {"t": 0.5}
    pairs = (("dial", "past"), ("past", "capital"), ("capital", "dial"))
    layers = ((0, 1), (2,), (3,))
    rules = [
        Rule(method="slerp", sources=pair, layers=at, parameters=half)  # type: ignore[arg-type]
        for pair, at in zip(pairs, layers, strict=True)
    ]
    end = Rule(method="slerp", sources=("dial", "past"), parts=ends, parameters=half)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no model in common"):
        to_mergekit(family(*rules, end, sources=sources))
    early, late = replace(rules[0], layers=(0, 1, 2)), replace(rules[1], layers=(3,))
    with pytest.raises(UserError, match="other sources than in the last layer"):
        to_mergekit(family(early, late, end, sources=sources))
    split = [
        Rule(method="slerp", sources=pair, parts=(part,), parameters=half)  # type: ignore[arg-type]
        for pair, part in zip(pairs[:2], ("attention", "mlp"), strict=True)
    ]
    rest = replace(end, parts=("norm", *ends))
    with pytest.raises(UserError, match="layer 0: other sources in other parts"):
        to_mergekit(family(*split, rest, sources=sources))


def test_stacks_that_have_no_words(sources: Path) -> None:
    recipe = family(
        Rule(method="task_arithmetic", sources=("dial", "past"), parameters={"weight": 0.5}),
        sources=sources,
    )
    taken = Piece(source="dial", layers=(0, 1), scale=0.5)
    scaled = Piece(source="merged", layers=(2, 3), scale=0.5)
    with pytest.raises(UserError) as caught:
        to_mergekit(replace(recipe, stack=(taken, scaled)))
    assert "layers 0-1 of dial: taken as they are, beside others by task" in str(caught.value)
    assert "layers 2-3 of merged: scaled, beside others by task" in str(caught.value)


def test_a_file_and_revisions(sources: Path, tmp_path: Path) -> None:
    recipe = family(
        Rule(method="linear", sources=("dial", "past"), parameters={"weight": 0.5}),
        sources=sources,
    )
    models = {**recipe.sources, "past": Model(path="owner/past", revision="v2")}
    write_mergekit(replace(recipe, sources=models), tmp_path / "merge.yml")
    again = read_recipe(tmp_path / "merge.yml")
    assert Model(path="owner/past", revision="v2") in again.sources.values()
    assert again.dtype == "bfloat16"

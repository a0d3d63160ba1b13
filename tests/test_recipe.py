"""Recipes: text and back, fingerprints, mistakes."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import UserError
from evomerge.recipe import Model, Piece, Recipe, Rule, format_layers, parse_layers

RECIPE = Recipe(
    base=Model(path="models/base", sha256="00"),
    sources={"a": Model(path="models/a", revision="main"), "b": Model(path="models/b")},
    rules=(
        Rule(
            method="ties",
            sources=("a", "b"),
            parameters={"weight": {"a": 0.1, "b": 1e-7}, "lambda": 1.0, "normalize": True},
            layers=(0, 1, 2, 7),
            parts=("attention", "mlp"),
        ),
        Rule(method="passthrough", sources=("base",)),
    ),
    seed=3,
)


def test_text_and_back() -> None:
    assert Recipe.from_yaml(RECIPE.to_yaml()) == RECIPE
    assert Recipe.from_mapping(RECIPE.to_mapping()) == RECIPE


def test_a_stack_keeps_the_order_and_repeats_of_its_layers() -> None:
    pieces = (
        Piece(source="a", layers=(0, 1, 2, 1)),
        Piece(source="merged", layers=(2, 7, 3), scale=0.5),
    )
    stacked = replace(RECIPE, stack=pieces)
    assert Recipe.from_yaml(stacked.to_yaml()) == stacked
    assert "layers: 0-2,1" in stacked.to_yaml()
    assert stacked.fingerprint() != RECIPE.fingerprint()
    with pytest.raises(UserError, match=r"stack\.1\.source: 'merge': did you mean 'merged'"):
        Recipe.from_yaml(stacked.to_yaml().replace("merged", "merge"))


def test_file_and_back_with_relative_paths(tmp_path: Path) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    RECIPE.write(tmp_path / "recipe.yaml")
    read = Recipe.read(tmp_path / "recipe.yaml")
    assert read.base.path == str(tmp_path / "models" / "base")
    assert read.rules == RECIPE.rules


def test_fingerprint_follows_what_makes_the_weights() -> None:
    moved = replace(RECIPE, base=Model(path="elsewhere", sha256="00"))
    assert moved.fingerprint() == RECIPE.fingerprint()
    assert replace(RECIPE, seed=4).fingerprint() != RECIPE.fingerprint()
    assert replace(RECIPE, rules=RECIPE.rules[:1]).fingerprint() != RECIPE.fingerprint()


def test_the_fingerprint_never_changes_between_versions() -> None:
    assert RECIPE.fingerprint() == PINNED


@given(st.sets(st.integers(0, 99), min_size=1))
def test_layers_and_back(layers: set[int]) -> None:
    assert parse_layers(format_layers(tuple(sorted(layers)))) == tuple(sorted(layers))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sources: [a, b]", "sources: [a, c]", "'c': .*Known: a, b, base"),
        ("layers: 0-2,7", "layers: x", "expected layers such as"),
        ("method: ties", "methd: ties", "did you mean 'method'"),
        ("seed: 3", "seed: x", "seed: input should be a valid integer"),
    ],
)
def test_mistakes_are_named(old: str, new: str, message: str) -> None:
    text = RECIPE.to_yaml()
    assert old in text
    with pytest.raises(UserError, match=message):
        Recipe.from_yaml(text.replace(old, new))


PINNED = "a54f5a23fdfcc455"

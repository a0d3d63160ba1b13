"""Stacks: `encode` inverts `propose`; depth stays within its bounds; mistakes are named."""

import dataclasses
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.recipe import BASE, MERGED, Model, Piece, Recipe, Rule
from evomerge.searching.baselines import baselines, whole
from evomerge.searching.space import NotInSpace
from evomerge.searching.stacks import StackSpace

LAYERS = 6
TEMPLATE = Recipe(
    base=Model(path="b"), sources={"x": Model(path="x"), "y": Model(path="y")}, rules=()
)
PLAIN = {name: whole(TEMPLATE, "passthrough", (name,)).rules for name in (BASE, "x", "y")}
MIXED = {"trial 3": (Rule(method="linear", sources=("x", "y")),)}


def make(**changes: Any) -> StackSpace:
    settings: dict[str, Any] = {
        "template": TEMPLATE,
        "layers": LAYERS,
        "sources": ("x", "y"),
        "rules": PLAIN,
        "depth": (4, 8),
    }
    return StackSpace(**{**settings, **changes})


SPACES = [
    make(),
    make(order="layers", repeats=2, scale=(0.5, 1.5)),
    make(sources=(MERGED,), rules=MIXED, depth=(6, 6)),
    make(sources=(MERGED, "x", BASE), rules=MIXED, depth=(1, 12), scale=0.9),
]


@given(st.integers(0, 10**6), st.sampled_from(SPACES))
@settings(max_examples=60, deadline=None)
def test_encode_is_the_inverse_of_propose(seed: int, space: StackSpace) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    recipe = space.propose(trial)
    layers = recipe.layers_of_stack() or ()
    assert space.depth[0] <= len(layers) <= space.depth[1]
    assert all(layers.count(layer) <= 1 + space.repeats for layer in layers)
    assert set(trial.params) == set(space.distributions())
    encoded = space.encode(recipe)
    assert space.recipe(encoded) == recipe
    assert space.encode(space.recipe(encoded)) == encoded
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_passes_and_layers_differ_in_where_repeats_stand() -> None:
    for order, expected in (("passes", (0, 1, 2, 0, 1)), ("layers", (0, 0, 1, 1, 2))):
        space = make(order=order, sources=("x",), depth=(1, 12))
        stack = (Piece(source="x", layers=expected),)
        found = space.encode(dataclasses.replace(TEMPLATE, rules=PLAIN[BASE], stack=stack))
        assert space.recipe(found).layers_of_stack() == expected


def test_random_proposals_are_near_the_plain_order() -> None:
    space = make(depth=(1, 12), sources=("x",))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    stacks = [space.propose(study.ask()).layers_of_stack() or () for _ in range(100)]
    assert sum(stack == tuple(range(LAYERS)) for stack in stacks) > 10
    assert 5.5 < sum(map(len, stacks)) / len(stacks) < 6.5


def test_plain_models_and_starts_are_in_the_space() -> None:
    space = make()
    plain = baselines(TEMPLATE, space.methods)
    assert space.recipe(space.encode(plain["x"])).layers_of_stack() == tuple(range(LAYERS))
    with pytest.raises(NotInSpace, match="source = base is outside the space"):
        space.encode(plain[BASE])
    with pytest.raises(NotInSpace, match="rules are not among"):
        space.encode(plain["linear"])
    overlap = space.starts()["overlap"]
    assert overlap.layers_of_stack() == (0, 1, 2, 3, 2, 3, 4, 5)
    assert [piece.source for piece in overlap.stack or ()] == ["x", "y"]
    assert space.recipe(space.encode(overlap)) == overlap
    later = make(sources=(MERGED,), rules=MIXED)
    start = later.starts()["start trial 3"]
    assert start.rules == MIXED["trial 3"]
    assert later.recipe(later.encode(start)).stack == (
        Piece(source=MERGED, layers=tuple(range(LAYERS))),
    )


@pytest.mark.parametrize(
    ("layers", "message"),
    [((3, 2, 1, 0), "layer 1 has no place"), ((0, 1), "depth of 2"), ((0,) * 4, "no place left")],
)
def test_stacks_outside_the_space_say_why(layers: tuple[int, ...], message: str) -> None:
    stack = (Piece(source="x", layers=layers),)
    with pytest.raises(NotInSpace, match=message):
        make().encode(dataclasses.replace(TEMPLATE, rules=PLAIN[BASE], stack=stack))

"""`encode` and `propose` are inverses; samplers see the whole space; groups cover the model."""

from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution

from evomerge.architectures import PARTS
from evomerge.methods.method import Parameter
from evomerge.recipe import Model, Recipe
from evomerge.searching.baselines import baselines
from evomerge.searching.groups import Blocks, Cell, Depth, Knots, make_groups
from evomerge.searching.samplers import choose_sampler
from evomerge.searching.space import NotInSpace, SearchSpace

LAYERS = 6
TEMPLATE = Recipe(
    base=Model(path="b"), sources={"x": Model(path="x"), "y": Model(path="y")}, rules=()
)
TOGETHER = (("attention", "mlp", "norm"),)
SEPARATE = (("attention",), ("mlp",), ("norm",))


def default_range(cell: Cell, row: Parameter) -> tuple[float, float] | float:
    return (row.low, row.high) if row.searched else float(row.default)


def make(
    depth: Depth,
    parts: Any,
    methods: tuple[str, ...],
    *,
    per_group: bool,
    lines: Any = None,
) -> SearchSpace:
    return SearchSpace(
        template=TEMPLATE,
        groups=make_groups(depth, parts, "together", LAYERS, set(PARTS)),
        methods=methods,
        method_per_group=per_group,
        ranges=default_range,
        lines=lines,
    )


SPACES = [
    make("global", TOGETHER, ("task_arithmetic",), per_group=False),
    make("layers", TOGETHER, ("task_arithmetic",), per_group=False),
    make(Blocks(size=4), SEPARATE, ("ties", "linear", "slerp"), per_group=True),
    make(Knots(count=3), SEPARATE, ("dare_ties", "passthrough"), per_group=False),
    make(Knots(count=4), TOGETHER, ("ties", "passthrough", "slerp"), per_group=True),
    make("layers", TOGETHER, ("ties",), per_group=False, lines=((0.0, 1.0), (0.0, 1.0))),
]


@given(st.integers(0, 10**6), st.sampled_from(SPACES))
@settings(max_examples=40, deadline=None)
def test_encode_is_the_inverse_of_propose(seed: int, space: SearchSpace) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    recipe = space.propose(trial)
    encoded = space.encode(recipe)
    assert space.recipe(encoded) == recipe
    assert space.encode(space.recipe(encoded)) == encoded
    assert set(encoded) == set(trial.params) == set(space.distributions())
    if len(space.methods) == 1:
        assert encoded == trial.params


@pytest.mark.parametrize("space", SPACES)
def test_every_place_is_in_one_group(space: SearchSpace) -> None:
    study = optuna.create_study()
    rules = space.propose(study.ask()).rules
    places = [(layer, part) for layer in range(LAYERS) for part in ("attention", "mlp", "norm")]
    for layer, part in [*places, *((None, p) for p in ("embeddings", "final_norm", "head"))]:
        assert sum(rule.covers(layer, part, "any") for rule in rules) == 1


def test_baselines_in_the_space_are_encoded_and_others_refused() -> None:
    space = SPACES[1]
    plain = baselines(TEMPLATE)
    encoded = space.encode(plain["task_arithmetic 0.5"])
    assert set(encoded.values()) == {0.5}
    with pytest.raises(NotInSpace, match="ties"):
        space.encode(plain["ties"])


def test_automatic_choice_follows_the_space() -> None:
    assert choose_sampler(SPACES[1].distributions())[0] == "trust_region"
    name, reason = choose_sampler(SPACES[2].distributions())
    assert name == "trust_region"
    assert "categories" in reason
    only = {"method": CategoricalDistribution(("ties", "linear"))}
    assert choose_sampler(only)[0] == "tpe"

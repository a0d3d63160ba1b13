"""`encode` and `propose` are inverses; samplers see the whole space; groups cover the model."""

from dataclasses import replace
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution

from evomerge.architectures import PARTS
from evomerge.methods.method import Parameter
from evomerge.recipe import Model, Piece, Recipe, Rule
from evomerge.searching.baselines import SCALES, baselines, further_baselines, whole
from evomerge.searching.equal_weights import weights_key
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
    switches: bool = False,
) -> SearchSpace:
    return SearchSpace(
        template=TEMPLATE,
        groups=make_groups(depth, parts, "together", LAYERS, set(PARTS)),
        methods=methods,
        method_per_group=per_group,
        ranges=default_range,
        lines=lines,
        switches=switches,
    )


SPACES = [
    make("global", TOGETHER, ("task_arithmetic",), per_group=False),
    make("layers", TOGETHER, ("task_arithmetic",), per_group=False),
    make(Blocks(size=4), SEPARATE, ("ties", "linear", "slerp"), per_group=True),
    make(Knots(count=3), SEPARATE, ("dare_ties", "passthrough"), per_group=False),
    make(Knots(count=4), TOGETHER, ("ties", "passthrough", "slerp"), per_group=True),
    make("layers", TOGETHER, ("ties",), per_group=False, lines=((0.0, 1.0), (0.0, 1.0))),
    make(Blocks(size=4), SEPARATE, ("ties", "slerp", "knots"), per_group=True, switches=True),
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
    assert all(len(rule.sources) > 0 for rule in recipe.rules)
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


@pytest.mark.parametrize("depth", ["global", "layers", Blocks(size=4), Knots(count=3)])
def test_coarser_recipes_are_expressible_and_finer_ones_are_not(depth: Depth) -> None:
    plain = baselines(TEMPLATE)["task_arithmetic 0.5"]
    blocks = make(Blocks(size=2), TOGETHER, ("task_arithmetic",), per_group=False)
    names = blocks.distributions()
    finer = blocks.recipe({name: 0.1 * n for n, name in enumerate(names)})
    space = make(depth, SEPARATE, ("task_arithmetic", "ties"), per_group=False)
    halves = replace(
        plain, rules=(_part(plain.rules[0], PARTS[:3]), _part(plain.rules[0], PARTS[3:]))
    )
    for recipe in (plain, halves):
        made = space.recipe(space.encode(recipe))
        assert weights_key(made) == weights_key(plain)
    if depth == "layers":
        made = space.recipe(space.encode(finer))
        assert space.encode(made) == space.encode(finer)
    else:
        with pytest.raises(NotInSpace):
            space.encode(finer)


def _part(rule: Rule, parts: tuple[str, ...]) -> Rule:
    return replace(rule, parts=parts)


def test_a_source_that_a_recipe_lacks_has_weight_0_or_is_switched_off() -> None:
    rule = Rule(method="ties", sources=("y",), parameters={"weight": {"y": 0.5}, "density": 0.3})
    recipe = replace(TEMPLATE, rules=(rule,))
    for switches in (False, True):
        space = make("global", TOGETHER, ("ties",), per_group=False, switches=switches)
        encoded = space.encode(recipe)
        made = space.recipe(encoded)
        assert weights_key(made) == weights_key(recipe)
        assert {each.sources for each in made.rules} == {("y",) if switches else ("x", "y")}
        assert {v for name, v in encoded.items() if "density" in name} == {0.3}
        assert {v for name, v in encoded.items() if "weight/y" in name} == {0.5}
        if not switches:
            assert {v for name, v in encoded.items() if "weight/x" in name} == {0.0}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    sources = {space.propose(study.ask()).rules[0].sources for _ in range(40)}
    assert sources == {("x", "y"), ("x",), ("y",)}


def test_equal_weights_are_told_by_what_has_an_effect() -> None:
    plain = baselines(TEMPLATE, ["dare_linear"])
    more = replace(TEMPLATE, sources={"z": Model(path="z"), **TEMPLATE.sources}, seed=5)

    def key(method: str, template: Recipe = TEMPLATE, **weight: float) -> str:
        return weights_key(whole(template, method, tuple(weight), weight=dict(weight)))

    assert key("task_arithmetic", x=0.5, y=0.5) == weights_key(plain["task_arithmetic 0.5"])
    assert key("task_arithmetic", more, z=0.0, x=0.5, y=0.5) == key("task_arithmetic", x=0.5, y=0.5)
    assert key("task_arithmetic", x=0.0, y=0.0) == weights_key(plain["base"])
    assert key("linear", x=1.0, y=0.0) == key("linear", x=1.0)
    different = [
        key("task_arithmetic", x=0.5, y=0.5),
        key("task_arithmetic", y=0.5, x=0.5),  # sums round by their order
        key("task_arithmetic", x=0.5),
        key("linear", x=0.5, y=0.5),
        key("consensus", more, z=0.0, x=0.5, y=0.5),  # a source of weight 0 has its say
        key("consensus", more, x=0.5, y=0.5),
        key("dare_linear", x=0.5, y=0.5),
        key("dare_linear", more, x=0.5, y=0.5),  # another seed
        weights_key(plain["x"]),
        weights_key(plain["base"]),
        weights_key(replace(plain["x"], dtype="float32")),
        weights_key(replace(plain["x"], vocabulary="y")),
        weights_key(replace(plain["x"], stack=(Piece(source="y", layers=(0, 1)),))),
    ]
    assert len(set(different)) == len(different)
    renamed = replace(more, sources={"q": Model(path="x"), "r": Model(path="y")})
    assert key("ties", renamed, q=0.5, r=0.4) == key("ties", x=0.5, y=0.4)
    assert key("dare_ties", renamed, q=0.5, r=0.4) != key("dare_ties", x=0.5, y=0.4)  # masks


def test_further_baselines_follow_the_best_scale_then_leave_one_source_out() -> None:
    def climb(best: float, template: Recipe, failed: float | None = None) -> list[str]:
        values: dict[str, float | None] = {
            f"task_arithmetic {scale:g}": -abs(scale - best) for scale in SCALES
        }
        while found := further_baselines(template, values):
            for name, recipe in found.items():
                scale = max(_weights(recipe).values())
                values[name] = None if scale == failed else -abs(scale - best)
        return list(values)[len(SCALES) :]

    def scales(*steps: float) -> list[str]:
        return [f"task_arithmetic {step:g}" for step in steps]

    assert climb(0.18, TEMPLATE) == scales(0.2, 0.4, 0.1)
    assert climb(0.5, TEMPLATE) == scales(0.4, 0.6)
    assert climb(0.75, TEMPLATE) == scales(0.4, 0.6, 0.7, 0.85)
    assert climb(1.5, TEMPLATE) == scales(0.85, 1.2)
    assert climb(0.18, TEMPLATE, failed=0.2) == scales(0.2, 0.4)
    three = replace(TEMPLATE, sources={**TEMPLATE.sources, "z": Model(path="z")})
    assert climb(0.5, three)[2:] == [f"task_arithmetic 0.5 without {name}" for name in "xyz"]
    values = dict.fromkeys([*scales(0.3, 0.4, 0.5, 0.6, 1.0)], 0.0) | {"task_arithmetic 0.5": 1.0}
    fewer = further_baselines(three, values)
    assert _weights(fewer["task_arithmetic 0.5 without y"]) == {"x": 0.5, "z": 0.5}


def _weights(recipe: Recipe) -> dict[str, float]:
    weights = recipe.rules[0].parameters["weight"]
    assert isinstance(weights, dict)
    return weights


def test_automatic_choice_follows_the_space() -> None:
    assert choose_sampler(SPACES[1].distributions())[0] == "trust_region"
    name, reason = choose_sampler(SPACES[2].distributions())
    assert name == "trust_region"
    assert "categories" in reason
    only = {"method": CategoricalDistribution(("ties", "linear"))}
    assert choose_sampler(only)[0] == "tpe"

"""Pareto fronts: who is on them, in which order, and where the knee is."""

from itertools import product

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from evomerge.searching.front import knee, layers, spread_order
from evomerge.searching.samplers import (
    ONE_OBJECTIVE,
    SAMPLERS,
    SpaceSampler,
    choose_sampler,
)

BOX: dict[str, BaseDistribution] = {name: FloatDistribution(0, 1) for name in "ab"}


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=25))
def test_layers_are_what_the_plain_definition_says(points: list[tuple[int, ...]]) -> None:
    def dominates(one: int, other: int) -> bool:
        first, second = points[one], points[other]
        if first == second:
            return one < other
        return all(x >= y for x, y in zip(first, second, strict=True))

    found = layers(np.array(points, dtype=float))
    assert sorted(row for layer in found for row in layer) == list(range(len(points)))
    for place, layer in enumerate(found):
        assert not any(
            dominates(one, other) for one, other in product(layer, layer) if one != other
        )
        for row in layer:
            assert place == 0 or any(dominates(one, row) for one in found[place - 1])


def test_extremes_and_isolated_members_come_first() -> None:
    front = np.array([[1.0, 0], [0.55, 0.5], [0.5, 0.55], [0.45, 0.6], [0, 1]])
    order = spread_order(front)
    assert set(order[:2]) == {0, 4}
    assert order[-1] == 2, "the most crowded one"


def test_the_knee_is_farthest_above_the_line_between_the_extremes() -> None:
    line = np.array([[10.0, 0], [8, 0.2], [5, 0.5], [0, 1]])
    bulge = np.array([[10.0, 0], [8, 0.5], [5, 0.6], [0, 1]])
    assert knee(bulge) == 1
    assert knee(bulge * [1000, 1] + [7, -3]) == 1, "whatever the objectives' scales"
    assert knee(line[[0, 3]]) == 0, "two members: the higher sum"
    assert knee(line[[3, 0]]) == 1
    assert knee(bulge[:1]) == 0
    flat = np.array([[1.0, 0.0, 2.0], [0.6, 0.6, 2.0], [0.0, 1.0, 2.0]])
    assert knee(flat) == 1


def test_auto_chooses_by_objectives_budget_and_categories() -> None:
    mixed = {**BOX, "method": CategoricalDistribution(("ties", "linear"))}
    many: dict[str, BaseDistribution] = {str(n): FloatDistribution(0, 1) for n in range(40)}

    def chosen(space: dict[str, BaseDistribution], trials: int | None, count: int) -> str:
        name, _ = choose_sampler(space, trials, count)
        assert name not in ONE_OBJECTIVE or count == 1
        return name

    assert chosen(BOX, 250, 2) == chosen(BOX, 100, 3) == "gp"
    assert chosen(BOX, 251, 2) == chosen(BOX, None, 3) == chosen(many, 100, 2) == "nsga2"
    assert chosen(BOX, 100, 4) == chosen(mixed, 600, 5) == "nsga3"
    assert chosen(mixed, 200, 2) == "tpe"
    assert chosen(mixed, 300, 2) == "nsga2"
    assert chosen(many, 500, 1) == "trust_region"


@pytest.mark.parametrize(
    ("name", "trials"), [("tpe", 80), ("gp", 24), ("nsga2", 160), ("nsga3", 240)]
)
def test_samplers_move_towards_the_front(name: str, trials: int) -> None:
    """Both objectives fall with b, and a decides between them; the limit keeps a above 0.2."""
    study = optuna.create_study(directions=["maximize"] * 2)
    study.sampler = SpaceSampler(SAMPLERS[name](1), BOX)
    for _ in range(trials):
        trial = study.ask(BOX)
        a, b = trial.params["a"], trial.params["b"]
        trial.set_constraint("limit", 0.2 - a)
        study.tell(trial, [a - b, 1 - a - b])
    late = study.trials[-trials // 4 :]
    assert float(np.mean([trial.params["b"] for trial in late])) < 0.35
    assert float(np.mean([trial.params["a"] < 0.2 for trial in late])) < 0.2
    assert float(np.std([trial.params["a"] for trial in late])) > 0.1, "all along the front"

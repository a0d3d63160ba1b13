"""Starts with even norms: only unusually long task vectors are made shorter."""

from pathlib import Path

import optuna
import pytest
import torch

from evomerge.architectures import PARTS
from evomerge.config import load_config
from evomerge.merging.models import open_models
from evomerge.merging.norms import task_vector_norms
from evomerge.methods.method import Parameter
from evomerge.recipe import Model, Recipe
from evomerge.searching.even_norms import enqueue_starts, even_norms
from evomerge.searching.groups import Blocks, Cell, make_groups
from evomerge.searching.record import BASELINE, RECIPE, START
from evomerge.searching.space import NotInSpace, SearchSpace

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
TEMPLATE = Recipe(
    base=Model(path="b"), sources={name: Model(path=name) for name in "xyz"}, rules=()
)


def default_range(cell: Cell, row: Parameter) -> tuple[float, float] | float:
    return (row.low, row.high) if row.searched else float(row.default)


def space_of(method: str = "task_arithmetic") -> SearchSpace:
    groups = make_groups(Blocks(size=2), [("attention", "mlp", "norm")], "together", 4, set(PARTS))
    return SearchSpace(
        template=TEMPLATE,
        groups=groups,
        methods=(method,),
        method_per_group=False,
        ranges=default_range,
    )


def test_weights_are_lowered_where_a_task_vector_is_longer_than_usual() -> None:
    space = space_of()
    first, second, ends = (group.place for group in space.groups)
    norms = {
        first: {"x": 1.0, "y": 2.0, "z": 8.0},
        second: {"x": 1.0, "y": 1.0, "z": 1.0},
        ends: {"x": 0.0, "y": 0.0, "z": 3.0},
    }
    found = even_norms(space, norms, 0.4)
    assert [found[f"{first.label}/weight/{name}"] for name in "xyz"] == [0.4, 0.4, 0.1]
    assert [found[f"{second.label}/weight/{name}"] for name in "xyz"] == [0.4, 0.4, 0.4]
    assert [found[f"{ends.label}/weight/{name}"] for name in "xyz"] == [0.4, 0.4, 0.0]
    assert space.encode(space.recipe(found)) == found


def test_starts_are_queued_once_and_only_where_they_can_be_written() -> None:
    study, asked = optuna.create_study(direction="maximize"), []

    def norms(cells: tuple[Cell, ...]) -> dict[Cell, dict[str, float]]:
        asked.append(cells)
        return {cell: {"x": 1.0, "y": 1.0, "z": 2.0} for cell in cells}

    for _ in range(2):
        enqueue_starts(study, space_of(), norms)
    assert len(asked) == 1
    assert [trial.user_attrs[START] for trial in study.trials] == [
        "even norms 0.3",
        "even norms 0.5",
    ]
    assert not any(BASELINE in trial.user_attrs for trial in study.trials)
    trial = study.ask()
    assert space_of().propose(trial).to_json() == trial.user_attrs[RECIPE]
    other = optuna.create_study()
    enqueue_starts(other, space_of("linear"), norms)
    assert not other.trials
    with pytest.raises(NotInSpace):
        even_norms(space_of("linear"), {}, 0.5)


def test_norms_are_those_of_the_differences() -> None:
    config = load_config(QUICKSTART).config
    names = tuple(config.sources)
    recipe = Recipe(base=config.base, sources=config.sources, rules=(), dtype="float32")
    models = open_models(recipe, relative_to=QUICKSTART.parent)
    places = [Cell(), Cell(layers=(1,), parts=("mlp",))]
    whole, part = task_vector_norms(models, places, names, torch.device("cpu")).values()
    for name in names:
        squares = {
            slot: float((source - base).double().square().sum())
            for slot in models.layout.slots
            for base, source in [models.operands(slot, (name,))]
        }
        inside = [n for s, n in squares.items() if ".layers.1." in s and ".mlp." in s]
        assert whole[name] == pytest.approx(sum(squares.values()) ** 0.5, rel=1e-4)
        assert part[name] == pytest.approx(sum(inside) ** 0.5, rel=1e-4)
        assert inside

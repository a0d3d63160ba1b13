"""Slopes of a score of the live model, against differences of that score."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from evomerge.merging import gradients
from evomerge.merging.models import open_models
from evomerge.merging.workspace import Workspace
from evomerge.recipe import Lines, Model, Recipe, Rule
from tests.families import make_checkpoint

TOKENS = torch.arange(1, 13)[None]


def recipe(
    folder: Path, first: float, second: float, scale: float = 1.0, beta: float = 0.0
) -> Recipe:
    return Recipe(
        base=Model(path=str(folder / "0")),
        sources={name: Model(path=str(folder / name)) for name in ("1", "2")},
        rules=(
            Rule(
                method="task_arithmetic",
                sources=("1", "2"),
                parameters={"weight": {"1": first, "2": second}, "lambda": scale},
                lines=Lines(alpha=0.5, beta=beta),
            ),
        ),
        dtype="float32",
    )


def opened(name: str, folder: Path) -> Workspace:
    for seed in range(3):
        make_checkpoint(name, folder / str(seed), seed=seed)
    models = open_models(recipe(folder, 1.0, 1.0))
    return Workspace(models, dtype=torch.float32, device=torch.device("cpu"))


def score(workspace: Workspace) -> torch.Tensor:
    logits = workspace.model(input_ids=TOKENS).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, TOKENS[0, 1:, None]).mean()


# Tied heads; transposed weights; fused projections; experts in one parameter.
@pytest.mark.parametrize(
    "name", ["llama_tied", "gpt2", "gpt_neox", "mixtral", "qwen3_moe", "mamba"]
)
def test_slopes_are_differences_for_every_layout(name: str, tmp_path: Path) -> None:
    workspace = opened(name, tmp_path)
    numbers = {"first": 0.3, "second": 0.2, "scale": 0.8}
    asked = recipe(tmp_path, **numbers, beta=0.7)
    workspace.load(asked)
    (found,) = workspace.slopes(asked, (score(workspace) / 2 for _ in range(2)))

    def value(**changed: float) -> float:
        workspace.load(recipe(tmp_path, **{**numbers, **changed}, beta=0.7))
        with torch.no_grad():
            return float(score(workspace))

    got = dict(zip(numbers, (*found["weight"], *found["lambda"]), strict=True))
    for name_, slope in got.items():
        step = 1e-2
        difference = value(**{name_: numbers[name_] + step}) - value(
            **{name_: numbers[name_] - step}
        )
        assert slope == pytest.approx(difference / (2 * step), rel=0.03, abs=3e-3), name_


def test_no_gradient_outlives_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = opened("llama", tmp_path)
    asked = recipe(tmp_path, 0.3, 0.2)
    workspace.load(asked)
    held: list[int] = []
    plain = gradients._of_tensor

    def watched(*arguments: object) -> object:
        held.append(sum(p.grad is not None for p in workspace.model.parameters()))
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(gradients, "_of_tensor", watched)

    def terms() -> Iterator[torch.Tensor]:
        yield score(workspace)

    before = [p.requires_grad for p in workspace.model.parameters()]
    workspace.slopes(asked, terms())
    assert len(held) == len(list(workspace.model.parameters()))
    assert max(held) == 0
    assert [p.requires_grad for p in workspace.model.parameters()] == before
    assert all(p.grad is None for p in workspace.model.parameters())

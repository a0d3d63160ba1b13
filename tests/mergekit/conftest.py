"""The sources of the goldens, and merges of them, each made once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evomerge.merging.models import Models, open_models
from evomerge.merging.plan import merged_tensors
from evomerge.recipe import Recipe
from tests.mergekit.goldens import read_goldens
from tests.mergekit.sources import make_sources

Weights = Callable[[Recipe], dict[str, torch.Tensor]]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny model per name."""
    folder: Path = tmp_path_factory.mktemp("mergekit") / "sources"
    make_sources(folder)
    return folder


@pytest.fixture(scope="session")
def goldens() -> dict[str, torch.Tensor]:
    """What mergekit made."""
    return read_goldens()[1]


@pytest.fixture(scope="session")
def weights() -> Weights:
    """Recipe -> merged tensors by name."""
    made: dict[str, dict[str, torch.Tensor]] = {}
    opened: dict[str, Models] = {}  # each knows what was computed of its tensors once

    def weights_of(recipe: Recipe) -> dict[str, torch.Tensor]:
        key = recipe.to_yaml()
        if key not in made:
            models = f"{recipe.vocabulary} {recipe.base} {sorted(map(str, recipe.sources.items()))}"
            if models not in opened:
                opened[models] = open_models(recipe)
            made[key] = dict(merged_tensors(recipe, opened[models]))
        return made[key]

    return weights_of

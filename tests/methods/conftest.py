"""The way from a method's name to a merged tensor, as a recipe would take it."""

from collections.abc import Callable, Mapping

import pytest
import torch

from evomerge.methods import look_up
from evomerge.methods.apply import merge_tensor
from evomerge.methods.parameters import check_parameters
from evomerge.methods.statistics import TensorStatistics
from evomerge.seeding import mask_key

Merge = Callable[..., torch.Tensor]


@pytest.fixture(scope="session")
def merge() -> Merge:
    """merge(name, base, sources, parameters, keys=…, **options of merge_tensor)."""

    def merge_with(
        name: str,
        base: torch.Tensor,
        sources: tuple[torch.Tensor, ...],
        parameters: Mapping[str, object],
        keys: tuple[int, ...] | None = None,
        **options: object,
    ) -> torch.Tensor:
        if keys is None:
            keys = tuple(mask_key(0, "tensor", str(i)) for i in range(len(sources)))
        method = look_up(name)
        checked = check_parameters(method, parameters, len(sources))
        statistics = TensorStatistics(operands=(base, *sources), keys=keys)
        return merge_tensor(method, base, sources, checked, statistics, **options)

    return merge_with

"""Slopes of every smooth parameter against differences of merged tensors."""

import pytest
import torch

from evomerge.methods import METHODS
from evomerge.methods.apply import merge_tensor
from evomerge.methods.derivative import slopes, smooth_parameters
from evomerge.methods.method import Method, Value
from evomerge.methods.parameters import check_parameters
from tests.methods.test_methods import count, known, make

SMOOTH = pytest.mark.parametrize(
    "method",
    [method for method in METHODS.values() if smooth_parameters(method)],
    ids=lambda method: method.name,
)


def moved(value: Value, place: int, by: float) -> Value:
    if isinstance(value, tuple):
        return tuple(x + by * (i == place) for i, x in enumerate(value))
    return float(value) + by


@SMOOTH
@pytest.mark.parametrize("shape", [(23, 11), (257,)], ids=str)
def test_slopes_are_the_differences(method: Method, shape: tuple[int, ...]) -> None:
    sources = count(method)
    operands = make(shape, sources, seed=3)
    given = {"weight": [0.5, 0.7, 0.4][:sources], "lambda": 0.8, "density": 0.6, "t": 0.3}
    known_rows = {row.name for row in method.parameters}
    parameters = check_parameters(
        method, {n: v for n, v in given.items() if n in known_rows}, sources
    )
    statistics = known(operands, (5, 6, 7)[:sources])

    def merged(name: str = "lambda", place: int = 0, by: float = 0.0) -> torch.Tensor:
        changed = {**parameters, **({name: moved(parameters[name], place, by)} if by else {})}
        return merge_tensor(
            method, operands[0], tuple(operands[1:]), changed, statistics, out_dtype=torch.float64
        )

    step, differences, bent = 1e-3, {}, torch.zeros(shape, dtype=torch.bool)
    for name in smooth_parameters(method):
        value = parameters[name]
        for place in range(len(value) if isinstance(value, tuple) else 1):
            above, below = merged(name, place, step), merged(name, place, -step)
            bent |= (above + below - 2 * merged()).abs() > 1e-4
            differences[name, place] = (above - below) / (2 * step)
    assert bent.float().mean() < 0.05  # where a mask or an elected sign jumps in between
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(9)) * ~bent
    found = slopes(method, gradient, operands[0], tuple(operands[1:]), parameters, statistics)
    assert set(found) == set(smooth_parameters(method))
    for (name, place), difference in differences.items():
        assert found[name][place] == pytest.approx(
            float((difference * gradient).sum()), rel=1e-3, abs=1e-2
        ), name


def test_task_arithmetic_is_an_inner_product_with_a_task_vector() -> None:
    base, first, second = make((31, 17), 2)
    gradient = torch.randn(31, 17, generator=torch.Generator().manual_seed(1))
    method = METHODS["task_arithmetic"]
    parameters = check_parameters(method, {"weight": [0.3, 0.6], "lambda": 0.5}, 2)
    statistics = known([base, first, second], (1, 2))
    found = slopes(method, gradient, base, (first, second), parameters, statistics)
    expected = [0.5 * float((gradient * (s - base)).double().sum()) for s in (first, second)]
    assert found["weight"] == pytest.approx(expected, abs=1e-5 * gradient.numel())


def test_half_precision_operands_on_every_size() -> None:
    operands = make((300, 301), 2, dtype=torch.bfloat16)  # more than a piece
    gradient = torch.randn(300, 301, generator=torch.Generator().manual_seed(1)).bfloat16()
    method = METHODS["linear"]
    parameters = check_parameters(method, {"normalize": False}, 2)
    found = slopes(
        method, gradient, operands[0], tuple(operands[1:]), parameters, known(operands, (1, 2))
    )
    expected = [float((gradient.double() * s.double()).sum()) for s in operands[1:]]
    assert found["weight"] == pytest.approx(expected, abs=1e-5 * gradient.numel())

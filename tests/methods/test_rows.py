"""What a row of METHODS states about itself is true, over the whole table."""

import pytest
import torch
from torch._dynamo import config as dynamo

from evomerge.methods import METHODS
from evomerge.methods.apply import scalar_tensors
from evomerge.methods.method import Method, Value
from evomerge.methods.parameters import check_parameters
from evomerge.methods.statistics import TensorStatistics
from evomerge.seeding import mask_key

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
SHAPES = [(), (1,), (3,), (0,), (0, 4), (1, 1), (5, 7), (2, 3, 4)]


def operands(
    method: Method, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    """A base and as many sources as the method takes, three at most."""
    sources = min(3, method.maximum_sources or 3)
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for _ in range(sources + 1))


def ends(method: Method, sources: int) -> list[dict[str, Value]]:
    """The parameters with each in turn at either end of its search range."""
    return [
        check_parameters(method, {parameter.name: value}, sources)
        for parameter in method.parameters
        for value in (
            (False, True)
            if isinstance(parameter.default, bool)
            else (parameter.low, parameter.high)
        )
        # A soup of nothing is a case of its own: refused.
        if (method.name, parameter.name, value) != ("linear", "weight", 0.0)
    ]


def test_the_table_is_keyed_by_name() -> None:
    assert list(METHODS) == [
        "linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "passthrough",
    ]  # fmt: skip
    assert all(name == method.name for name, method in METHODS.items())


@every_method
def test_rows_are_complete(method: Method) -> None:
    assert method.title
    assert method.formula
    assert method.paper == "" or method.paper.startswith("https://")
    names = [parameter.name for parameter in method.parameters]
    assert len(set(names)) == len(names)
    for parameter in method.parameters:
        assert method.parameter(parameter.name) is parameter
        assert parameter.help
        assert parameter.per_source or not parameter.shared
        if isinstance(parameter.default, bool):
            assert not parameter.searched
            assert not parameter.per_source
        else:
            assert parameter.minimum <= parameter.low < parameter.high <= parameter.maximum
            assert parameter.low <= parameter.default <= parameter.high
    with pytest.raises(KeyError):
        method.parameter("no such")


@every_method
def test_same_key_same_bits(merge, method: Method) -> None:
    base, *sources = operands(method, (50, 40))
    first, again, other = (
        merge(
            method.name,
            base,
            tuple(sources),
            {},
            keys=tuple(mask_key(seed, "tensor", str(i)) for i in range(len(sources))),
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert torch.equal(first, other) == ("mask" not in method.needs)


@every_method
@pytest.mark.parametrize("zeros", [False, True], ids=["random", "zeros"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_finite_at_both_ends_of_every_range(
    merge, method: Method, shape: tuple[int, ...], zeros: bool
) -> None:
    base, *sources = (operand * (not zeros) for operand in operands(method, shape))
    for parameters in ends(method, len(sources)):
        merged = merge(method.name, base, tuple(sources), parameters)
        assert merged.isfinite().all(), parameters
        assert not zeros or not merged.any(), parameters


@every_method
def test_sources_that_equal_the_base(merge, method: Method) -> None:
    base, *sources = operands(method, (5, 7))
    merged = merge(method.name, base, tuple(base.clone() for _ in sources), {})
    torch.testing.assert_close(merged, base, rtol=1e-6, atol=0)


@every_method
def test_needs_base_is_true_to_the_result(merge, method: Method) -> None:
    base, *sources = operands(method, (5, 7))
    other = operands(method, (5, 7), seed=1)[0]
    same = torch.equal(*(merge(method.name, b, tuple(sources), {}) for b in (base, other)))
    assert same != method.needs_base


@every_method
def test_coefficients_ask_for_what_the_row_says(method: Method) -> None:
    class Witness(TensorStatistics):
        """Notes which statistics are asked for."""

        def gram(self, first: int, second: int) -> float:
            asked.add("gram")
            return super().gram(first, second)

        def threshold(self, source: int, density: float) -> tuple[float, int]:
            asked.add("thresholds")
            return super().threshold(source, density)

        def key(self, source: int) -> int:
            asked.add("mask")
            return super().key(source)

    asked: set[str] = set()
    given = operands(method, (5, 7))
    witness = Witness(operands=given, keys=(1, 2, 3))
    scalars = method.coefficients(check_parameters(method, {}, witness.sources), witness)
    assert asked == method.needs
    assert all(len(values) in (1, witness.sources) for values in scalars.values())


@every_method
def test_combine_compiles_to_one_graph_for_all_values(method: Method) -> None:
    base, *sources = operands(method, (300,))
    index = torch.arange(300)
    torch._dynamo.reset()
    compiled = torch.compile(method.combine, backend="eager", fullgraph=True)
    with dynamo.patch(error_on_recompile=True):
        for seed, parameters in enumerate(ends(method, len(sources))):
            statistics = TensorStatistics(operands=(base, *sources), keys=(seed, 2, 3))
            scalars = scalar_tensors(method.coefficients(parameters, statistics), base.device)
            arguments = (base, tuple(sources), scalars, index)
            assert torch.equal(compiled(*arguments), method.combine(*arguments))

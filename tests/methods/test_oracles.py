"""Every method against its definition in plain Python, entry by entry, and identities.

Entries are multiples of 1/8 and so are most parameters: sums are exact, magnitudes tie and votes
cancel often, and an elected sign never hangs on rounding.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import CandidateError
from evomerge.methods import METHODS
from evomerge.methods.method import Method, Parameter
from evomerge.seeding import mask_key

Vector = list[float]
Oracle = Callable[[Vector, list[Vector], Mapping[str, Any], tuple[int, ...]], Vector]

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
KEYS = tuple(mask_key(7, "tensor", str(i)) for i in range(3))


def linear(base: Vector, sources: list[Vector], p: Mapping[str, Any], keys: tuple) -> Vector:
    divisor = sum(p["weight"]) if p["normalize"] else 1.0
    return [
        sum(w * x for w, x in zip(p["weight"], entries, strict=True)) / divisor
        for entries in zip(*sources, strict=True)
    ]


def slerp(base: Vector, sources: list[Vector], p: Mapping[str, Any], keys: tuple) -> Vector:
    a, b = sources
    norm_a, norm_b = math.hypot(*a), math.hypot(*b)
    t, weight_a, weight_b = p["t"], 1 - p["t"], p["t"]
    if norm_a > 1e-8 and norm_b > 1e-8:
        cosine = sum(x * y for x, y in zip(a, b, strict=True)) / norm_a / norm_b
        if abs(cosine) <= 0.9995:
            theta = math.acos(cosine)
            weight_a = math.sin((1 - t) * theta) / math.sin(theta)
            weight_b = math.sin(t * theta) / math.sin(theta)
    return [weight_a * x + weight_b * y for x, y in zip(a, b, strict=True)]


def passthrough(base: Vector, sources: list[Vector], p: Mapping[str, Any], keys: tuple) -> Vector:
    return [p["scale"] * x for x in sources[0]]


def task_arithmetic(
    base: Vector, sources: list[Vector], p: Mapping[str, Any], keys: tuple
) -> Vector:
    return [
        w0 + p["lambda"] * sum(w * d for w, d in zip(p["weight"], entries, strict=True))
        for w0, entries in zip(base, zip(*deltas(base, sources), strict=True), strict=True)
    ]


def ties(base: Vector, sources: list[Vector], p: Mapping[str, Any], keys: tuple) -> Vector:
    trimmed = []
    for delta, density in zip(deltas(base, sources), p["density"], strict=True):
        ranked = sorted(range(len(delta)), key=lambda n: (-abs(delta[n]), n))
        kept = set(ranked[: math.floor(density * len(delta) + 0.5)])
        trimmed.append([d if n in kept else 0.0 for n, d in enumerate(delta)])
    return elected(base, trimmed, p)


def dare_linear(base: Vector, sources: list[Vector], p: Mapping[str, Any], keys: tuple) -> Vector:
    dropped = [
        [w0 + d for w0, d in zip(base, row, strict=True)] for row in drop(base, sources, p, keys)
    ]
    return task_arithmetic(base, dropped, p, keys)


def dare_ties(base: Vector, sources: list[Vector], p: Mapping[str, Any], keys: tuple) -> Vector:
    return elected(base, drop(base, sources, p, keys), p)


def deltas(base: Vector, sources: list[Vector]) -> list[Vector]:
    return [[x - w0 for w0, x in zip(base, source, strict=True)] for source in sources]


def elected(base: Vector, rows: list[Vector], p: Mapping[str, Any]) -> Vector:
    merged = []
    for w0, entries in zip(base, zip(*rows, strict=True), strict=True):
        votes = [w * d for w, d in zip(p["weight"], entries, strict=True)]
        sign = 1 if sum(votes) >= 0 else -1
        agreeing = [i for i, vote in enumerate(votes) if vote * sign > 0]
        divisor = sum(abs(p["weight"][i]) for i in agreeing) if p["normalize"] else 1.0
        merged.append(w0 + p["lambda"] * sum(votes[i] for i in agreeing) / (divisor or 1.0))
    return merged


def drop(
    base: Vector, sources: list[Vector], p: Mapping[str, Any], keys: tuple[int, ...]
) -> list[Vector]:
    rows = []
    for i, delta in enumerate(deltas(base, sources)):
        density = p["density"][i]
        scale = density if p["rescale"] else 1.0
        rows.append(
            [d / scale if uniform(keys[i], n) < density else 0.0 for n, d in enumerate(delta)]
        )
    return rows


def uniform(key: int, index: int) -> float:
    bits = (index & 0xFFFFFFFF) ^ (key & 0x7FFFFFFF)
    for then in ((key >> 31) ^ (index >> 32), 0):
        for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
            bits = (bits ^ (bits >> shift)) * factor % 2**32
        bits = bits ^ (bits >> 15) ^ then
    return (bits >> 8) / 2**24


ORACLES: dict[str, Oracle] = {
    "linear": linear,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "passthrough": passthrough,
}


def values(parameter: Parameter) -> st.SearchStrategy[float | bool]:
    """Values of a parameter, beyond its search range too, that keep the arithmetic exact."""
    if isinstance(parameter.default, bool):
        return st.booleans()
    if parameter.name == "density":
        return st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0])
    low, high = max(parameter.minimum, -1.5), min(parameter.maximum, 1.5)
    return st.integers(math.ceil(low * 8), math.floor(high * 8)).map(lambda n: n / 8)


@st.composite
def cases(draw: st.DrawFn, method: Method) -> tuple[Vector, list[Vector], dict[str, Any]]:
    """A base, its sources and one value for every parameter."""
    sources = draw(st.integers(method.minimum_sources, method.maximum_sources or 3))
    entries = draw(st.integers(1, 12))
    vector = st.lists(st.integers(-16, 16).map(lambda n: n / 8), min_size=entries, max_size=entries)
    parameters = {
        row.name: draw(st.tuples(*[values(row)] * sources) if row.per_source else values(row))
        for row in method.parameters
    }
    return draw(vector), [draw(vector) for _ in range(sources)], parameters


def test_every_method_has_an_oracle() -> None:
    assert set(ORACLES) == set(METHODS)


@every_method
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_agrees_with_its_oracle(merge, method: Method, data: st.DataObject) -> None:
    base, sources, parameters = data.draw(cases(method))
    operands = (torch.tensor(base), tuple(map(torch.tensor, sources)))
    keys = KEYS[: len(sources)]
    try:
        expected = ORACLES[method.name](base, sources, parameters, keys)
    except ZeroDivisionError:
        with pytest.raises(CandidateError, match="sum to 0, too near zero"):
            merge(method.name, *operands, parameters)
        return
    merged = merge(method.name, *operands, parameters, keys=keys)
    torch.testing.assert_close(merged, torch.tensor(expected), rtol=1e-6, atol=1e-6)


@every_method
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_permuted_sources_with_their_values_change_nothing(
    merge, method: Method, data: st.DataObject
) -> None:
    base, sources, parameters = data.draw(cases(method))
    order = data.draw(st.permutations(range(len(sources))))
    permuted = {
        name: tuple(value[i] for i in order) if isinstance(value, tuple) else value
        for name, value in parameters.items()
    }
    if method.name == "slerp" and list(order) == [1, 0]:
        permuted["t"] = 1 - permuted["t"]
    elif "weight" in parameters and not sum(parameters["weight"]):
        return  # `linear` refuses these; the oracle test shows it
    tensors = [torch.tensor(source) for source in sources]
    first = merge(
        method.name, torch.tensor(base), tuple(tensors), parameters, keys=KEYS[: len(tensors)]
    )
    second = merge(
        method.name,
        torch.tensor(base),
        tuple(tensors[i] for i in order),
        permuted,
        keys=tuple(KEYS[i] for i in order),
    )
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "ties"])
@pytest.mark.parametrize("flipped", [1, -1], ids=["up", "down"])
def test_at_density_one_without_conflict_it_is_task_arithmetic_to_the_bit(
    merge, method: str, flipped: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(500, generator=generator)
    sources = tuple(base + flipped * torch.rand(500, generator=generator) for _ in range(3))
    chosen = {"weight": (0.3, 0.7, 0.45), "lambda": 0.9}
    one = {**chosen, "density": 1.0, **({} if method == "dare_linear" else {"normalize": False})}
    assert torch.equal(
        merge(method, base, sources, one), merge("task_arithmetic", base, sources, chosen)
    )


@settings(max_examples=50, deadline=None)
@given(weights=st.tuples(*[st.floats(0.0, 1.2, width=32)] * 3).filter(lambda w: sum(w) > 0.1))
def test_linear_of_equal_tensors_is_that_tensor(merge, weights: tuple[float, ...]) -> None:
    tensor = torch.randn(50, generator=torch.Generator().manual_seed(0))
    merged = merge("linear", torch.zeros(50), (tensor,) * 3, {"weight": weights})
    torch.testing.assert_close(merged, tensor, rtol=3e-7, atol=0)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.7, 1.0])
def test_slerp_of_parallel_opposite_or_zero_tensors_is_plain_interpolation(merge, t: float) -> None:
    a = torch.tensor([3.0, 4.0])
    for b in (a * 2, -a, torch.zeros(2), a * (1 + 1e-4)):
        merged = merge("slerp", a, (a, b), {"t": t})
        torch.testing.assert_close(merged, (1 - t) * a + t * b, rtol=1e-6, atol=1e-6)


def test_slerp_keeps_the_norm_of_operands_of_one_norm(merge) -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    merged = merge("slerp", a, (a, b), {"t": 1 / 3})
    expected = torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]) * 2
    torch.testing.assert_close(merged, expected)


def test_dare_scatters_around_task_arithmetic_as_its_paper_says(merge) -> None:
    generator = torch.Generator().manual_seed(3)
    base, *sources = (torch.randn(64, generator=generator) for _ in range(3))
    weights, densities, draws = (0.8, -0.5), (0.3, 0.6), 2000
    found = torch.stack([
        merge(
            "dare_linear", base, tuple(sources), {"weight": weights, "density": densities},
            keys=tuple(mask_key(seed, "tensor", name) for name in "ab"),
        )
        for seed in range(draws)
    ])  # fmt: skip
    expected = merge("task_arithmetic", base, tuple(sources), {"weight": weights})
    variance = sum(
        (p * (source - base)) ** 2 * (1 - d) / d
        for p, d, source in zip(weights, densities, sources, strict=True)
    )
    standard_errors = (found.mean(0) - expected).abs() / (variance / draws).sqrt()
    assert standard_errors.max() < 4.5
    assert (found.var(0) / variance - 1).abs().max() < 0.2
    assert abs((found.var(0) / variance).mean() - 1) < 0.02

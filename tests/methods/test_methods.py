"""Contract tests over every row of METHODS, identities, and plain loops as oracles."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import CandidateError, UserError
from evomerge.methods import METHODS, look_up
from evomerge.methods.apply import chunked, merge_tensor, scalar_tensors
from evomerge.methods.masks import keys, uniform
from evomerge.methods.method import Inputs, Method, Operands, Value
from evomerge.methods.parameters import check_parameters
from evomerge.methods.statistics import TensorStatistics
from evomerge.seeding import mask_key

ALL = pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
SHAPES = [(), (1,), (3,), (7, 5), (2, 3, 4), (0,)]


def count(method: Method) -> int:
    """A number of sources that the method takes."""
    return min(3, method.maximum_sources or 3)


def make(
    shape: tuple[int, ...], sources: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(sources + 1)]


def random_numbers(key: int, elements: int) -> torch.Tensor:
    empty = torch.empty(0)
    operands = Operands(
        base=empty,
        sources=(empty,),
        position=torch.arange(elements, dtype=torch.int32),
        block=torch.zeros((), dtype=torch.int32),
    )
    return uniform(operands, scalar_tensors(keys([key], [1.0]), torch.device("cpu")), 0)


def known(operands: list[torch.Tensor], keys: tuple[int, ...]) -> TensorStatistics:
    """Statistics of a tensor; one of two dimensions is a linear weight with random inputs."""

    def inputs(source: int) -> Inputs | None:
        if operands[0].dim() != 2:
            return None
        features = operands[0].shape[1]
        read = torch.randn(50, features, generator=torch.Generator().manual_seed(source))
        return Inputs(gram=read.T @ read, dim=1)

    return TensorStatistics(operands=tuple(operands), keys=keys, inputs=inputs)


def run(name: str, operands: list[torch.Tensor], seed: int = 0, **given_: object) -> torch.Tensor:
    method = METHODS[name]
    parameters = check_parameters(method, given_, len(operands) - 1)
    keys = tuple(mask_key(seed, "tensor", str(n)) for n in range(1, len(operands)))
    return run_with(method, operands, parameters, known(operands, keys))


def ends(method: Method, low: bool, sources: int) -> dict[str, Value]:
    rows = [row for row in method.parameters if not isinstance(row.default, bool)]
    given_ = {row.name: (row.low if low else row.high) for row in rows}
    if low and "weight" in given_:
        given_["weight"] = 0.01  # all weights zero is a case of its own
    return check_parameters(method, given_, sources)


@ALL
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keeps_shape_and_dtype_and_leaves_inputs_alone(
    method: Method, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    operands = make(shape, count(method), dtype)
    before = [operand.clone() for operand in operands]
    merged = run(method.name, operands)
    assert merged.shape == shape
    assert merged.dtype == dtype
    assert merged.isfinite().all()
    for operand, old in zip(operands, before, strict=True):
        assert torch.equal(operand, old)


@ALL
@pytest.mark.parametrize("low", [True, False])
def test_finite_at_both_ends_of_every_range(method: Method, low: bool) -> None:
    sources = count(method)
    for operands in (make((9, 11), sources), [torch.zeros(4, 4)] * (sources + 1)):
        parameters = ends(method, low, sources)
        statistics = known(operands, (1, 2, 3)[:sources])
        merged = merge_tensor(method, operands[0], tuple(operands[1:]), parameters, statistics)
        assert merged.isfinite().all()


@ALL
def test_same_key_same_bits_whatever_the_chunk(method: Method) -> None:
    operands = make((41, 13), count(method))
    parameters = check_parameters(method, {}, count(method))
    statistics = known(operands, (5, 6, 7)[: count(method)])
    results = [
        merge_tensor(
            method,
            operands[0],
            tuple(operands[1:]),
            parameters,
            statistics,
            run=partial(chunked, chunk=chunk),
        )
        for chunk in (7, 64, 10_000)
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@ALL
def test_writes_into_a_strided_view(method: Method) -> None:
    operands = make((6, 4), count(method))
    parameters = check_parameters(method, {}, count(method))
    statistics = known(operands, (5, 6, 7)[: count(method)])
    whole = torch.full((4, 12), -9.0)
    view = whole.t()[::2]
    merge_tensor(method, operands[0], tuple(operands[1:]), parameters, statistics, out=view)
    assert torch.equal(view, run_with(method, operands, parameters, statistics))
    assert (whole.t()[1::2] == -9).all()


def run_with(
    method: Method, operands: list[torch.Tensor], parameters: object, s: object
) -> torch.Tensor:
    return merge_tensor(method, operands[0], tuple(operands[1:]), parameters, s)  # type: ignore[arg-type]


@ALL
def test_unknown_parameters_and_wrong_counts_are_refused(method: Method) -> None:
    with pytest.raises(UserError, match="has no parameter 'wieght'"):
        check_parameters(method, {"wieght": 1.0}, count(method))
    with pytest.raises(UserError, match="source"):
        check_parameters(method, {}, 0)
    for row in method.parameters:
        if not isinstance(row.default, bool) and math.isfinite(row.maximum):
            with pytest.raises(UserError, match=row.name):
                check_parameters(method, {row.name: row.maximum + 1}, count(method))


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'ties'"):
        look_up("tise")


weights = st.lists(st.floats(0.05, 1.2), min_size=3, max_size=3)


@given(weights)
@settings(max_examples=25, deadline=None)
def test_order_of_sources_changes_nothing(p: list[float]) -> None:
    base, *sources = make((5, 7), 3)
    for name in ("linear", "task_arithmetic", "ties"):
        one = run(name, [base, *sources], weight=p)
        other = run(name, [base, *sources[::-1]], weight=p[::-1])
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@given(weights)
@settings(max_examples=25, deadline=None)
def test_dare_at_density_one_is_task_arithmetic(p: list[float]) -> None:
    operands = make((5, 7), 3)
    dare = run("dare_linear", operands, weight=p, density=1.0)
    torch.testing.assert_close(dare, run("task_arithmetic", operands, weight=p))


def test_ties_at_density_one_without_conflict_is_task_arithmetic() -> None:
    base = torch.zeros(50)
    sources = [torch.rand(50) + 0.1 for _ in range(2)]
    ties = run("ties", [base, *sources], weight=[0.3, 0.6], density=1.0, normalize=False)
    torch.testing.assert_close(ties, run("task_arithmetic", [base, *sources], weight=[0.3, 0.6]))


def test_slerp_ends_are_its_operands_and_the_middle_is_between() -> None:
    base, a, b = make((8, 8), 2)
    torch.testing.assert_close(run("slerp", [base, a, b], t=0.0), a)
    torch.testing.assert_close(run("slerp", [base, a, b], t=1.0), b)
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    theta = math.acos(cosine)
    expected = (
        math.sin(0.3 * theta) / math.sin(theta) * a + math.sin(0.7 * theta) / math.sin(theta) * b
    )
    torch.testing.assert_close(run("slerp", [base, a, b], t=0.7), expected)


def test_nuslerp_at_the_ends_is_a_source_and_by_row_is_slerp_of_each_row() -> None:
    base, a, b = make((4, 8), 2)
    for flags in ({}, {"task_vectors": False}, {"by_row": True}, {"by_column": True}):
        torch.testing.assert_close(run("nuslerp", [base, a, b], weight=[1.0, 0.0], **flags), a)
        torch.testing.assert_close(run("nuslerp", [base, a, b], weight=[0.0, 0.3], **flags), b)
    rows = [run("slerp", [base[i], a[i], b[i]], t=0.3) for i in range(4)]
    by_row = run("nuslerp", [base, a, b], weight=[0.7, 0.3], task_vectors=False, by_row=True)
    torch.testing.assert_close(by_row, torch.stack(rows))
    columns = [run("slerp", [base[:, i], a[:, i], b[:, i]], t=0.3) for i in range(8)]
    by_column = run("nuslerp", [base, a, b], weight=[0.7, 0.3], task_vectors=False, by_column=True)
    torch.testing.assert_close(by_column, torch.stack(columns, 1))


def test_spherical_means_of_two_are_slerp() -> None:
    base, a, b = make((8, 8), 2)
    b = b * (a.norm() / b.norm())
    half = run("slerp", [base, a, b], t=0.5)
    torch.testing.assert_close(run("karcher", [base, a, b], max_iter=50.0, tol=1e-12), half)
    third = run("slerp", [base, a, b], t=0.5)
    torch.testing.assert_close(run("multislerp", [base, a, b], weight=[0.4, 0.4]), third)


def test_the_karcher_mean_has_no_tangent_left() -> None:
    _, *sources = operands = make((300,), 3, seed=8)
    mean = run("karcher", operands, max_iter=100.0, tol=1e-12).double()
    mean = mean / mean.norm()
    total = torch.zeros(300).double()
    for source in sources:
        unit = source.double() / source.double().norm()
        cosine = unit @ mean
        total += torch.acos(cosine) / (1 - cosine**2).sqrt() * (unit - cosine * mean)
    assert float(total.norm()) < 1e-5


def test_model_stock_of_one_direction_is_that_source_and_of_none_the_base() -> None:
    base, a = make((6, 5), 1)
    torch.testing.assert_close(run("model_stock", [base, a, a, a]), a)
    across = torch.zeros(6, 5)
    across[0] = 1.0
    other = torch.zeros(6, 5)
    other[1] = 1.0
    torch.testing.assert_close(run("model_stock", [base, base + across, base + other]), base)


def test_nearswap_moves_by_at_most_t() -> None:
    base, source = make((50,), 1)
    merged = run("nearswap", [base, source], t=0.25)
    assert float((merged - base).abs().max()) <= 0.25 + 1e-6
    near = (source - base).abs() <= 0.25
    torch.testing.assert_close(merged[near], source[near])


def test_della_keeps_large_entries_oftener_and_has_the_mean_of_its_paper() -> None:
    base = torch.zeros(1, 256)
    source = torch.arange(1, 257).float().view(1, 256)
    draws = torch.stack(
        [
            run("della_linear", [base, source], seed=n, density=0.5, epsilon=0.3)[0]
            for n in range(600)
        ]
    )
    kept = (draws != 0).float().mean(0)
    expected = 0.2 + 0.6 * torch.arange(256) / 255
    assert float((kept - expected).abs().mean()) < 0.025
    assert float((draws.mean(0) / source[0]).mean()) == pytest.approx(1.0, abs=0.02)


def test_della_without_a_window_is_dare() -> None:
    operands = make((7, 5), 3)
    della = run("della_linear", operands, density=0.4, epsilon=0.0)
    torch.testing.assert_close(della, run("dare_linear", operands, density=0.4))


def test_breadcrumbs_drops_the_largest_and_the_smallest() -> None:
    base, source = torch.zeros(20), torch.arange(1, 21).float()
    merged = run("breadcrumbs", [base, source], density=0.5, gamma=0.2)
    assert merged.tolist() == [0.0] * 6 + list(range(7, 17)) + [0.0] * 4
    whole = run("breadcrumbs", [base, source], density=0.9, gamma=0.5)
    assert int((whole != 0).sum()) == 18


def test_sce_agrees_with_plain_loops() -> None:
    base, *sources = make((60,), 3, seed=5)
    deltas = [(source - base).tolist() for source in sources]
    columns = list(zip(*deltas, strict=True))

    def variance(column: tuple[float, ...]) -> float:
        mean = sum(column) / 3
        return sum((x - mean) ** 2 for x in column)

    chosen = sorted(range(60), key=lambda n: -variance(columns[n]))[:24]
    energies = [sum(columns[n][i] ** 2 for n in chosen) for i in range(3)]
    eta = [energy / sum(energies) for energy in energies]
    expected = base.clone()
    for n in chosen:
        sign = 1 if sum(columns[n]) >= 0 else -1
        left = [(w, x) for w, x in zip(eta, columns[n], strict=True) if x * sign > 0]
        expected[n] += sum(w * x for w, x in left) / sum(w for w, _ in left)
    torch.testing.assert_close(run("sce", [base, *sources], select_topk=0.4), expected)


def test_consensus_agrees_with_plain_loops_and_without_it_is_task_arithmetic() -> None:
    base, *sources = make((50,), 3, seed=6)
    operands = [base, *sources]
    everything = run("consensus", operands, agree=0.0)
    torch.testing.assert_close(everything, run("task_arithmetic", operands))
    columns = list(zip(*((source - base).tolist() for source in sources), strict=True))
    expected = base.clone()
    for n, column in enumerate(columns):
        needed = sum(abs(x) >= 0.5 * abs(sum(column) - x) for x in column)
        expected[n] += sum(column) if needed >= 2 else 0.0
    torch.testing.assert_close(run("consensus", operands, tall_lambda=0.5), expected)


def test_linear_weights_that_sum_to_zero_are_a_candidate_error() -> None:
    with pytest.raises(CandidateError, match="sum"):
        run("linear", make((3,), 2), weight=[0.5, -0.5])


def ties_oracle(
    base: torch.Tensor, sources: list[torch.Tensor], weight: list[float], density: float
) -> torch.Tensor:
    """Trim, elect, merge, entry by entry in Python (arXiv 2306.01708, section 3)."""
    deltas = [(source - base).tolist() for source in sources]
    kept = math.floor(density * base.numel() + 0.5)
    for delta in deltas:
        order = sorted(range(len(delta)), key=lambda n: (-abs(delta[n]), n))
        for dropped in order[kept:]:
            delta[dropped] = 0.0
    merged = []
    for entries in zip(*deltas, strict=True):
        votes = [p * x for p, x in zip(weight, entries, strict=True)]
        sign = 1 if sum(votes) >= 0 else -1
        agreeing = [(p, v) for p, v in zip(weight, votes, strict=True) if v * sign > 0]
        divisor = sum(p for p, _ in agreeing) or 1.0
        merged.append(sum(v for _, v in agreeing) / divisor)
    return base + torch.tensor(merged)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.37, 0.5, 1.0])
def test_ties_agrees_with_plain_loops(density: float) -> None:
    base, *sources = make((60,), 3, seed=3)
    weight = [0.2, 0.7, 0.4]
    got = run("ties", [base, *sources], weight=weight, density=density)
    torch.testing.assert_close(got, ties_oracle(base, sources, weight, density))


def test_density_is_exact_where_thousands_of_entries_tie() -> None:
    base = torch.zeros(5000, dtype=torch.bfloat16)
    source = torch.full((5000,), 0.5, dtype=torch.bfloat16)
    merged = run("ties", [base, source], density=0.3)
    assert int((merged != 0).sum()) == 1500


def test_dare_agrees_with_plain_loops() -> None:
    base, *sources = make((40,), 2, seed=4)
    keys = [mask_key(9, "tensor", str(n)) for n in (1, 2)]
    expected = base.clone()
    for source, key, p in zip(sources, keys, [0.3, 0.8], strict=True):
        for n, u in enumerate(random_numbers(key, 40).tolist()):
            if u < 0.4:
                expected[n] += p * (source[n] - base[n]) / 0.4
    got = run("dare_linear", [base, *sources], seed=9, weight=[0.3, 0.8], density=0.4)
    torch.testing.assert_close(got, expected)


def test_dare_has_the_mean_and_variance_of_its_paper() -> None:
    base, source = torch.zeros(200), torch.ones(200)
    draws = torch.stack(
        [run("dare_linear", [base, source], seed=n, density=0.25) for n in range(400)]
    )
    assert abs(float(draws.mean()) - 1.0) < 0.03
    assert abs(float(draws.var()) - 0.75 / 0.25) < 0.1


def test_masks_are_uniform_and_independent() -> None:
    first, second = (random_numbers(mask_key(0, "t", s), 200_000) for s in "ab")
    assert first.min() >= 0
    assert first.max() < 1
    bins = torch.histc(first, 64, 0, 1)
    assert float(((bins - 3125) ** 2 / 3125).sum()) < 110  # chi-square, 63 degrees: p > 0.0002
    correlation = torch.corrcoef(torch.stack([first[:-1], first[1:], second[1:]]))
    assert float((correlation - torch.eye(3)).abs().max()) < 0.01


def test_masks_never_change_between_versions() -> None:
    found = random_numbers(mask_key(0, "model.norm.weight", "a"), 4)
    assert [round(x, 6) for x in found.tolist()] == PINNED


PINNED = [0.882825, 0.836244, 0.926279, 0.033567]

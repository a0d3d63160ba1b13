"""Matrix methods against plain float64 versions of their papers."""

import pytest
import torch

from evomerge.methods import METHODS
from evomerge.methods.apply import merge_tensor
from evomerge.methods.parameters import check_parameters
from evomerge.methods.statistics import TensorStatistics

MATRIX = [method for method in METHODS.values() if method.matrix is not None]


def run(name: str, operands: list[torch.Tensor], **given: object) -> torch.Tensor:
    method = METHODS[name]
    parameters = check_parameters(method, given, len(operands) - 1)
    statistics = TensorStatistics(operands=tuple(operands))
    return merge_tensor(method, operands[0], tuple(operands[1:]), parameters, statistics)


def full(shape: tuple[int, ...], sources: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(sources + 1)]


def low_rank(m: int, n: int, rank: int, sources: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    base = draw(m, n)
    return [base, *(base + draw(m, rank) @ draw(rank, n) for _ in range(sources))]


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected.to(got.dtype), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (9, 9)])
def test_tsv_agrees_with_its_algorithm(shape: tuple[int, int]) -> None:
    base, *sources = operands = full(shape, 3)
    weight = [0.5, 1.0, 0.3]
    cut = -(-min(shape) // 3)
    parts = [torch.linalg.svd((s - base).double(), full_matrices=False) for s in sources]
    left = torch.cat([u[:, :cut] for u, _, _ in parts], 1)
    right = torch.cat([v[:cut] for _, _, v in parts])
    sigma = torch.cat([p * s[:cut] for p, (_, s, _) in zip(weight, parts, strict=True)])
    # The polar factor by another road: X (XᵀX)^(-1/2).
    values, vectors = torch.linalg.eigh(left.T @ left)
    left = left @ (vectors @ torch.diag(values.clamp(min=1e-12).rsqrt()) @ vectors.T)
    values, vectors = torch.linalg.eigh(right @ right.T)
    right = (vectors @ torch.diag(values.clamp(min=1e-12).rsqrt()) @ vectors.T) @ right
    expected = base + 0.8 * (left @ torch.diag(sigma) @ right)
    close(run("tsv", operands, weight=weight, **{"lambda": 0.8}), expected)


def test_tsv_of_one_source_is_that_source_and_a_zero_task_vector_disturbs_nobody() -> None:
    base, source = operands = full((8, 14), 1)
    close(run("tsv", operands), source)
    sources = low_rank(16, 12, 2, 1)
    with_zero = run("tsv", [*sources, sources[0]])
    close(with_zero, sources[1])
    assert torch.equal(run("tsv", [base, base]), base)


def test_iso_c_has_one_singular_value_the_mean_of_those_of_the_sum() -> None:
    base, *sources = operands = full((10, 15), 3)
    total = torch.stack(sources).sum(0) - 3 * base
    before = torch.linalg.svdvals(total.double())
    after = torch.linalg.svdvals((run("iso_c", operands) - base).double())
    close(after, before.mean().expand(10))


@pytest.mark.parametrize("name", ["knots", "core_space"])
def test_a_sum_in_the_shared_basis_is_task_arithmetic(name: str) -> None:
    weight = [0.4, 1.0, 0.7]
    for operands in (full((10, 14), 3), low_rank(24, 18, 3, 3)):
        got = run(name, operands, weight=weight, ties=False)
        close(got, run("task_arithmetic", operands, weight=weight))


def test_cores_of_low_rank_task_vectors_are_small() -> None:
    operands = low_rank(64, 48, 3, 3)
    factors = METHODS["core_space"].matrix.factors(*operands)  # type: ignore[union-attr]
    assert factors["cores"].shape == (3, 9, 9)
    assert METHODS["knots"].matrix.factors(*operands)["basis"].shape == (64, 9)  # type: ignore[union-attr]


def test_knots_trims_and_elects_in_the_basis_of_the_stacked_svd() -> None:
    base, *sources = operands = low_rank(15, 10, 2, 2)
    stacked = torch.cat([source - base for source in sources], 1)
    u, sigma, v = torch.linalg.svd(stacked, full_matrices=False)
    v = v[:4]
    parts = [v[:, :10], v[:, 10:]]
    kept = []
    for part in parts:
        count = (30 * part.numel() + 50) // 100
        end = part.abs().flatten().sort(descending=True).values[count - 1]
        kept.append(torch.where(part.abs() >= end, part, 0.0))
    sign = torch.where(kept[0] + kept[1] >= 0, 1.0, -1.0)
    agree = [part * sign > 0 for part in kept]
    count = (agree[0].float() + agree[1].float()).clamp(min=1)
    merged = sum(torch.where(a, part, 0.0) for a, part in zip(agree, kept, strict=True)) / count
    close(run("knots", operands, density=0.3), base + (u[:, :4] * sigma[:4]) @ merged)


@pytest.mark.parametrize("method", MATRIX, ids=lambda method: method.name)
@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1), (0, 4), (6, 6)], ids=str)
def test_thin_empty_equal_and_unchanged_matrices_have_results(
    method: object, shape: tuple[int, int]
) -> None:
    name = method.name  # type: ignore[attr-defined]
    base, source = full(shape, 1)
    for operands in ([base, source], [base, source, source], [base, base, base]):
        assert run(name, operands).isfinite().all()
    assert torch.equal(run(name, [base, base, base]), base)

"""Plain loops in float64 for methods that the reference implementation lacks or does otherwise."""

import math

import numpy as np
import pytest
import torch

from evomerge.seeding import mask_key
from tests.methods.test_methods import make, random_numbers, run


def columns(operands: list[torch.Tensor]) -> list[list[float]]:
    """δ_i of all sources, entry by entry."""
    base, *sources = operands
    return torch.stack([(source - base).flatten() for source in sources], 1).double().tolist()


def draws(sources: int, elements: int, seed: int) -> list[list[float]]:
    keys = [mask_key(seed, "tensor", str(n)) for n in range(1, sources + 1)]
    numbers = [random_numbers(key, elements).tolist() for key in keys]
    return [list(each) for each in zip(*numbers, strict=True)]


def elected(votes: list[float]) -> float:
    """Sum of the votes that have the sign of their sum."""
    sign = 1 if sum(votes) >= 0 else -1
    return sum(vote for vote in votes if vote * sign > 0)


def test_dare_ties_drops_rescales_and_elects() -> None:
    operands = make((60,), 3, seed=4)
    weight, density = [0.3, 0.8, 0.5], [0.4, 0.7, 0.9]
    expected = []
    for column, row in zip(columns(operands), draws(3, 60, seed=9), strict=True):
        rows = zip(column, row, weight, density, strict=True)
        expected.append(elected([p * x / d if u < d else 0.0 for x, u, p, d in rows]))
    got = run("dare_ties", operands, seed=9, weight=weight, density=density, **{"lambda": 0.7})
    torch.testing.assert_close(got, operands[0] + 0.7 * torch.tensor(expected))


@pytest.mark.parametrize("name", ["della", "della_linear"])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.95])
def test_della_keeps_by_rank_within_the_row(name: str, density: float) -> None:
    operands = make((4, 52), 2, seed=3)  # 51 steps of rank, of which 255 is a multiple
    base, *sources = operands
    weight, epsilon = [0.4, 0.9], 0.15
    shares = []
    for source in sources:
        ranks = (source - base).abs().argsort(1).argsort(1).double()
        share = density - epsilon + 2 * epsilon * ranks / 51
        shares.append(share.clamp(0, 1).flatten().tolist())
    expected = []
    for n, (column, row) in enumerate(zip(columns(operands), draws(2, 208, seed=5), strict=True)):
        votes = [
            p * x / share[n] if u < share[n] else 0.0
            for x, u, p, share in zip(column, row, weight, shares, strict=True)
        ]
        expected.append(elected(votes) if name == "della" else sum(votes))
    got = run(name, operands, seed=5, weight=weight, density=density, epsilon=epsilon)
    torch.testing.assert_close(got, base + torch.tensor(expected).view(4, 52), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("task_vectors", [False, True])
def test_multislerp_is_one_step_on_the_sphere(task_vectors: bool) -> None:
    base, *sources = operands = make((30,), 3, seed=2)
    weight = np.array([0.2, 0.5, 0.9])
    share = weight / weight.sum()
    start = base.double().numpy() if task_vectors else np.zeros(30)
    vectors = [source.double().numpy() - start for source in sources]
    lengths = [np.linalg.norm(v) for v in vectors]
    units = [v / length for v, length in zip(vectors, lengths, strict=True)]
    mean = sum(p * u for p, u in zip(share, units, strict=True))
    mean = mean / np.linalg.norm(mean)
    tangent = np.zeros(30)
    for p, unit in zip(share, units, strict=True):
        theta = math.acos(unit @ mean)
        tangent += p * theta / math.sin(theta) * (unit - (unit @ mean) * mean)
    step = np.linalg.norm(tangent)
    point = math.cos(step) * mean + math.sin(step) / step * tangent
    expected = start + point * sum(p * length for p, length in zip(share, lengths, strict=True))
    got = run("multislerp", operands, weight=weight.tolist(), task_vectors=task_vectors)
    torch.testing.assert_close(got.double(), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_core_space_trims_and_elects_in_the_common_cores() -> None:
    base, *factors = make((14, 3), 4, seed=6)
    start = base @ factors[0].T
    sources = [start + factors[1] @ factors[2].T, start + factors[3] @ factors[1].T]
    deltas = [(source - start).double().numpy() for source in sources]
    parts = [[each[..., :3] for each in (u, s)] + [v[:3]] for u, s, v in map(svd, deltas)]
    left = svd(np.concatenate([u * np.sqrt(s) for u, s, _ in parts], 1))[0][:, :6]
    right = svd(np.concatenate([np.sqrt(s)[:, None] * v for _, s, v in parts]))[2][:6]
    cores = [left.T @ delta @ right.T for delta in deltas]
    weight, kept = [0.6, 0.9], math.floor(0.5 * 36 + 0.5)
    trimmed = [np.where(np.abs(c) >= np.sort(np.abs(c), axis=None)[-kept], c, 0.0) for c in cores]
    merged = np.zeros((6, 6))
    for place in np.ndindex(6, 6):
        votes = [p * core[place] for p, core in zip(weight, trimmed, strict=True)]
        sign = 1 if sum(votes) >= 0 else -1
        agreeing = [p for p, vote in zip(weight, votes, strict=True) if vote * sign > 0]
        merged[place] = elected(votes) / (sum(agreeing) or 1.0)
    expected = start.double() + 0.8 * torch.tensor(left @ merged @ right)
    operands = [start, *sources]
    got = run("core_space", operands, weight=weight, density=0.5, **{"lambda": 0.8})
    torch.testing.assert_close(got.double(), expected, atol=1e-3, rtol=1e-3)


def svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, sigma, v = np.linalg.svd(matrix, full_matrices=False)
    return u, sigma, v


def test_passthrough_is_one_source_times_its_scale() -> None:
    base, source = make((6, 5), 1)
    assert torch.equal(run("passthrough", [base, source]), source)
    assert torch.equal(run("passthrough", [base, source], scale=0.5), 0.5 * source)

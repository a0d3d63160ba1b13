"""RegMean against numpy's least squares, and the cases in which its result is known."""

import numpy as np
import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.methods import METHODS
from evomerge.methods.apply import merge_tensor
from evomerge.methods.method import Inputs
from evomerge.methods.parameters import check_parameters
from evomerge.methods.statistics import TensorStatistics

REGMEAN = METHODS["regmean"]
OUT, IN, TOKENS = 5, 7, 40


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(
    sources: list[torch.Tensor], inputs: list[torch.Tensor] | None, dim: int = 1, **given: object
) -> torch.Tensor:
    """inputs: X_i [tokens, in] of each source; None: not a linear layer's weight."""

    def known(source: int) -> Inputs | None:
        if inputs is None:
            return None
        read = inputs[source - 1]
        return Inputs(gram=read.T @ read, dim=dim)

    operands = (torch.zeros_like(sources[0]), *sources)
    statistics = TensorStatistics(operands=operands, inputs=known)
    parameters = check_parameters(REGMEAN, given, len(sources))
    return merge_tensor(REGMEAN, operands[0], tuple(sources), parameters, statistics)


@pytest.fixture
def sources() -> list[torch.Tensor]:
    return [draw(OUT, IN, seed=n) for n in range(3)]


@pytest.fixture
def inputs() -> list[torch.Tensor]:
    return [draw(TOKENS, IN, seed=10 + n) * (1 + n) for n in range(3)]


def test_without_scaling_it_is_the_least_squares_solution(
    sources: list[torch.Tensor], inputs: list[torch.Tensor]
) -> None:
    weight = [0.2, 1.0, 0.5]
    rows = np.concatenate([p**0.5 * x.numpy() for p, x in zip(weight, inputs, strict=True)])
    targets = np.concatenate(
        [(p**0.5 * x @ w.T).numpy() for p, x, w in zip(weight, inputs, sources, strict=True)]
    )
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0].T
    got = run(sources, inputs, weight=weight, off_diagonal=1.0)
    torch.testing.assert_close(got, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_it_agrees_with_the_papers_equation_in_plain_loops(
    sources: list[torch.Tensor], inputs: list[torch.Tensor]
) -> None:
    left = np.zeros((OUT, IN))
    right = np.zeros((IN, IN))
    for w, x in zip(sources, inputs, strict=True):
        gram = np.zeros((IN, IN))
        for i in range(IN):
            for j in range(IN):
                scale = 1.0 if i == j else 0.3
                gram[i, j] = scale * float(x[:, i].double() @ x[:, j].double())
        left += w.double().numpy() @ gram
        right += gram
    expected = torch.tensor(left @ np.linalg.inv(right)).float()
    torch.testing.assert_close(
        run(sources, inputs, off_diagonal=0.3), expected, atol=1e-5, rtol=1e-5
    )
    flipped = run([w.T.contiguous() for w in sources], inputs, dim=0, off_diagonal=0.3)
    torch.testing.assert_close(flipped.T, expected, atol=1e-5, rtol=1e-5)


def test_one_source_and_equal_sources_are_that_source(inputs: list[torch.Tensor]) -> None:
    source = draw(OUT, IN, seed=1)
    assert torch.equal(run([source], inputs[:1]), source)
    torch.testing.assert_close(run([source] * 3, inputs), source)


def test_alike_inputs_and_other_tensors_are_averaged(sources: list[torch.Tensor]) -> None:
    weight = [0.5, 1.0, 0.25]
    average = sum(p * w for p, w in zip(weight, sources, strict=True)) / 1.75
    alike = [torch.eye(IN)] * 3
    torch.testing.assert_close(run(sources, alike, weight=weight), average)
    torch.testing.assert_close(run(sources, None, weight=weight), average)


def test_inputs_that_are_never_active_take_the_average(
    sources: list[torch.Tensor], inputs: list[torch.Tensor]
) -> None:
    silent = [x.clone() for x in inputs]
    for x in silent:
        x[:, 2] = 0.0
    got = run(sources, silent)
    torch.testing.assert_close(got[:, 2], torch.stack(sources).mean(0)[:, 2])
    nothing = run(sources, [torch.zeros(3, IN)] * 3)
    torch.testing.assert_close(nothing, torch.stack(sources).mean(0))


@pytest.mark.parametrize("weight", [[0.0, 0.0, 0.0], [1.0, -0.2, 1.0]], ids=str)
def test_weights_below_zero_or_all_zero_are_a_candidate_error(
    sources: list[torch.Tensor], inputs: list[torch.Tensor], weight: list[float]
) -> None:
    with pytest.raises(CandidateError, match="none below 0"):
        run(sources, inputs, weight=weight)


def test_a_sum_that_cannot_be_inverted_is_a_candidate_error(sources: list[torch.Tensor]) -> None:
    broken = torch.full((IN, IN), 2.0) - torch.eye(IN)  # as rounding may leave a singular one
    statistics = TensorStatistics(
        operands=(sources[0], *sources), inputs=lambda source: Inputs(gram=broken, dim=1)
    )
    parameters = check_parameters(REGMEAN, {"off_diagonal": 1.0}, len(sources))
    with pytest.raises(CandidateError, match="singular"):
        merge_tensor(REGMEAN, sources[0], tuple(sources), parameters, statistics)

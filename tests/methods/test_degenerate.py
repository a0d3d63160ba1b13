"""Cases in which a method has little to go by: each has a defined result, or a clear error."""

import pytest
import torch

from evomerge.errors import CandidateError
from evomerge.methods import METHODS
from evomerge.methods.method import Method
from evomerge.methods.parameters import check_parameters
from evomerge.seeding import mask_key
from tests.methods.test_methods import ALL, count, known, make, run, run_with

WEIGHTED = [m for m in METHODS.values() if "weight" in {row.name for row in m.parameters}]
NORMALIZED = {"linear", "nuslerp", "multislerp", "regmean"}
"""Those that divide by the sum of the weights."""
MEANS = {
    "linear": {},
    "slerp": {},
    "nuslerp": {},
    "multislerp": {},
    "karcher": {},
    "model_stock": {},
    "ties": {"density": 1.0},
    "breadcrumbs_ties": {"density": 1.0, "gamma": 0.0, "normalize": True},
    "dare_ties": {"density": 1.0, "normalize": True},
    "della": {"density": 1.0, "epsilon": 0.0, "normalize": True},
    "sce": {},
    "ram": {},
    "ramplus": {},
    "regmean": {},
}
"""Methods whose result lies between the sources, with parameters that leave nothing out."""


@pytest.mark.parametrize("method", WEIGHTED, ids=lambda method: method.name)
def test_all_weights_zero_is_the_base_or_an_error(method: Method) -> None:
    operands = make((7, 5), count(method))
    if method.name in NORMALIZED:
        with pytest.raises(CandidateError, match="sum"):
            run(method.name, operands, weight=0.0)
    else:
        torch.testing.assert_close(run(method.name, operands, weight=0.0), operands[0])


@ALL
def test_the_base_among_the_sources_and_copies_of_one_have_results(method: Method) -> None:
    base, first, *others = make((7, 5), count(method))
    for sources in ([base, *others], [first] * count(method), [base] * count(method)):
        merged = run(method.name, [base, *sources])
        assert merged.isfinite().all()


@pytest.mark.parametrize(("name", "parameters"), MEANS.items(), ids=lambda value: str(value)[:20])
def test_a_mean_of_copies_is_the_source(name: str, parameters: dict[str, float]) -> None:
    base, source = make((7, 5), 1)
    merged = run(name, [base, *[source] * count(METHODS[name])], **parameters)
    torch.testing.assert_close(merged, source)


@ALL
def test_a_task_vector_of_zeros_changes_nothing_where_all_are_zero(method: Method) -> None:
    (base,) = make((7, 5), 0)
    merged = run(method.name, [base] * (count(method) + 1))
    torch.testing.assert_close(merged, base)


@ALL
def test_large_float16_weights_do_not_overflow(method: Method) -> None:
    operands = [(900 * each).to(torch.float16) for each in make((120, 130), count(method))]
    weight = {"weight": 0.3} if method in WEIGHTED else {}
    assert run(method.name, operands, **weight).isfinite().all()


def test_a_tie_of_signs_is_plus_and_zeros_neither_vote_nor_count() -> None:
    base = torch.zeros(3)
    sources = [torch.tensor([1.0, 3.0, -2.0]), torch.tensor([-1.0, 0.0, 0.0])]
    merged = run("ties", [base, *sources], density=1.0)
    assert merged.tolist() == [1.0, 3.0, -2.0]


def test_by_row_and_by_column_together_are_refused() -> None:
    with pytest.raises(CandidateError, match="expected one of them"):
        run("nuslerp", make((4, 4), 2), by_row=True, by_column=True)


@ALL
def test_a_source_of_nan_is_never_hidden(method: Method) -> None:
    base, *sources = make((40, 30), count(method))
    sources[0][3] = float("nan")
    try:
        merged = run(method.name, [base, *sources])
    except CandidateError as error:
        message = str(error)
    else:
        message = "" if merged.isfinite().all() else "NaN"
    assert "NaN" in message


@pytest.mark.parametrize(
    "method", [m for m in WEIGHTED if m.maximum_sources is None], ids=lambda method: method.name
)
def test_a_source_of_weight_zero_leaves_no_trace_where_the_row_says_so(method: Method) -> None:
    base, *sources = make((7, 5), 3)
    keys = tuple(mask_key(0, "tensor", name) for name in ("one", "two", "three"))

    def merged(kept: list[int], weights: tuple[float, ...]) -> torch.Tensor:
        operands = [base, *(sources[i] for i in kept)]
        parameters = check_parameters(method, {"weight": weights}, len(kept))
        return run_with(method, operands, parameters, known(operands, tuple(keys[i] for i in kept)))

    same = all(
        torch.equal(merged([0, 1, 2], (0.7, zero, 0.4)), merged([0, 2], (0.7, 0.4)))
        for zero in (0.0, -0.0)
    )
    if method.zero_is_absent:
        assert same
    else:  # or the row says less than it could
        assert not same or method.name in ("multislerp", "regmean", "consensus")

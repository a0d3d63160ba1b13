"""The compiled pass makes the bits of the plain one, and compiles once whatever the recipe."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from evomerge.methods import METHODS
from evomerge.methods import compiled as module
from evomerge.methods.apply import chunked, merge_tensor
from evomerge.methods.compiled import SMALLEST, CompiledPass, choose_pass
from evomerge.methods.method import Method
from evomerge.methods.parameters import check_parameters
from evomerge.methods.statistics import TensorStatistics

CPU = torch.device("cpu")
ELEMENTWISE = [method for method in METHODS.values() if method.matrix is None]
COMPILED = ("task_arithmetic", "ties", "dare_ties")
"""Compiled in earnest, which takes seconds each; of the others the tracing alone is tested."""


def operands(elements: int, sources: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (elements // 64, 64)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(sources + 1)]


def merge(
    method: Method, tensors: list[torch.Tensor], run: object, **given: object
) -> torch.Tensor:
    parameters = check_parameters(method, given, len(tensors) - 1)
    keys = tuple(range(10**15, 10**15 + len(tensors) - 1))
    statistics = TensorStatistics(operands=tuple(tensors), keys=keys)
    return merge_tensor(
        method,
        tensors[0],
        tuple(tensors[1:]),
        parameters,
        statistics,
        run=run,  # type: ignore[arg-type]
    )


def as_stored(tensor: torch.Tensor, number: int) -> torch.Tensor:
    """The tensor by itself, as a part of a file's bytes, or as one expert of a fused parameter."""
    if number % 3 == 1:
        file = torch.cat([torch.zeros(8, dtype=torch.uint8), tensor.flatten().view(torch.uint8)])
        return file[8:].view(tensor.dtype).view(tensor.shape)
    return torch.stack([tensor] * 2)[1] if number % 3 == 2 else tensor


@pytest.fixture(scope="module")
def compiled() -> CompiledPass:
    run, reason = choose_pass(CPU, 2**30)
    assert reason == "compiled"
    assert isinstance(run, CompiledPass)
    return run


@pytest.mark.parametrize("name", COMPILED)
def test_one_kernel_serves_100_recipes_and_makes_the_bits_of_the_plain_pass(
    compiled: CompiledPass, name: str
) -> None:
    method = METHODS[name]
    counters.clear()
    generator = torch.Generator().manual_seed(1)
    for number in range(100):
        weight = torch.rand(3, generator=generator).tolist()
        tensors = operands(64 * (65 + 37 * number), 3, torch.bfloat16, seed=number)
        tensors = [as_stored(tensor, number) for tensor in tensors]
        given: dict[str, object] = {"weight": weight, "lambda": 0.5 + number / 100}
        if name != "task_arithmetic":
            given["density"] = torch.rand(3, generator=generator).tolist()
        got = merge(method, tensors, compiled, **given)
        assert torch.equal(got, merge(method, tensors, chunked, **given)), number
    assert counters["stats"]["unique_graphs"] == 1


def test_other_types_and_numbers_of_sources_get_kernels_of_their_own(
    compiled: CompiledPass,
) -> None:
    method = METHODS["task_arithmetic"]
    for sources, dtype in [(1, torch.float32), (2, torch.float16)]:
        tensors = operands(2 * SMALLEST, sources, dtype)
        assert torch.equal(merge(method, tensors, compiled), merge(method, tensors, chunked))


@pytest.mark.parametrize("method", ELEMENTWISE, ids=lambda method: method.name)
def test_every_elementwise_method_traces_into_one_graph(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    def traced(function: object) -> object:
        return torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")  # type: ignore[call-overload]

    monkeypatch.setattr(module, "_compiled", traced)
    counters.clear()
    run = CompiledPass()
    sources = min(3, method.maximum_sources or 3)
    for elements in (2 * SMALLEST, 3 * SMALLEST):
        tensors = operands(elements, sources, torch.bfloat16)
        assert torch.equal(merge(method, tensors, run), merge(method, tensors, chunked))
    assert counters["stats"]["unique_graphs"] == 1


WITHOUT_COMPILER = """
import logging, torch
from evomerge.methods.apply import chunked
from evomerge.methods.compiled import choose_pass
logging.basicConfig(format="LOG %(message)s")
run, reason = choose_pass(torch.device("cpu"), 2**30)
print(run is chunked, reason)
"""


def test_without_a_compiler_the_plain_pass_serves_and_the_log_says_so(tmp_path: Path) -> None:
    bare = {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER], env=bare, capture_output=True, text=True
    )
    assert done.stdout.startswith(
        "True op by op, several times slower: no compiler for cpu (InvalidCxxCompiler"
    )
    assert done.stderr.count("no compiler") == 1
    assert "LOG merging on cpu: op by op, several times slower: no compiler" in done.stderr


def test_small_models_and_whoever_asks_for_it_merge_op_by_op() -> None:
    assert choose_pass(CPU, 1000)[0] is chunked
    assert choose_pass(CPU, 2**30, "never")[0] is chunked

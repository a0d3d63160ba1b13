"""The compiled pass: a method's `combine` fused by torch.compile into one kernel, on CPU and GPU.

Each operand is read once and the result is written straight into its place. Shapes are dynamic and
scalars are tensors, so that a method compiles once for a number of sources and their types, and
then serves every tensor and every recipe. The bits are those of `apply.chunked`: products and sums
are not contracted, divisions round as torch's do.
"""

import logging
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, Literal

import torch
import torch.fx.experimental._config as shapes

from evomerge.methods.apply import Pass, chunked
from evomerge.methods.method import Method, Operands

log = logging.getLogger(__name__)

SMALLEST = 2**12
"""Elements below which a launch costs more than the work; such tensors go chunk by chunk."""

WORTHWHILE = 2**24
"""Elements of a model from which compiling (seconds, once per method) repays within one search."""

Compile = Literal["auto", "always", "never"]

_OPTIONS: dict[str, Any] = {
    # A mask's hash is long but cheap. Realised on its own it would lose the wide vectors that
    # inductor chooses for loops that read bfloat16.
    "realize_opcount_threshold": 200,
    # Without these a GPU's bits would differ from those of the plain pass.
    "emulate_precision_casts": True,
    "eager_numerics.division_rounding": True,
}

_Kernel = Callable[[torch.Tensor, Operands, Mapping[str, torch.Tensor]], None]


class CompiledPass:
    """A `Pass` with one kernel per method, number of sources and set of types.

    A method that cannot be compiled is announced in the log and goes chunk by chunk from then on.
    """

    def __init__(self) -> None:
        self._kernels: dict[str, _Kernel | None] = {}

    def __call__(
        self,
        method: Method,
        out: torch.Tensor,
        operands: Operands,
        scalars: Mapping[str, torch.Tensor],
    ) -> None:
        """See `Pass`."""
        kernel = self._kernel(method)
        if kernel is None or out.numel() < SMALLEST:
            chunked(method, out, operands, scalars)
            return
        try:
            with shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
                kernel(out, operands, scalars)
        except torch._dynamo.exc.TorchDynamoException as error:
            log.warning("%s is merged op by op: it does not compile: %s", method.name, error)
            self._kernels[method.name] = None
            chunked(method, out, operands, scalars)

    def _kernel(self, method: Method) -> _Kernel | None:
        if method.name not in self._kernels:
            self._kernels[method.name] = _compiled(_merge_with(method))
        return self._kernels[method.name]


def choose_pass(device: torch.device, elements: int, wanted: Compile = "auto") -> tuple[Pass, str]:
    """The pass for a model of that many elements on a device, and why in words.

    auto: the compiled pass where the model is large enough to repay the seconds that compiling
    takes. Where no compiler is at hand (C++ for a CPU, triton for a GPU) the plain pass serves, and
    the log says so: it says once which pass serves.
    """
    run, reason, level = _choose(device, elements, wanted)
    log.log(level, "merging on %s: %s", device, reason)
    return run, reason


def _choose(device: torch.device, elements: int, wanted: Compile) -> tuple[Pass, str, int]:
    """The pass, why, and at which level the log says so."""
    if wanted == "never":
        return chunked, "op by op, as configured", logging.INFO
    if wanted == "auto" and elements < WORTHWHILE:
        few = f"{elements / 1e6:.3g} million elements do not repay compiling"
        return chunked, f"op by op: {few}", logging.INFO
    try:
        _probe(device)
    except Exception as error:  # noqa: BLE001 - compilers fail in ways of their own
        cause = getattr(error, "inner_exception", error)
        first = next(iter(str(cause).strip().splitlines()), "")
        reason = f"no compiler for {device.type} ({type(cause).__name__}: {first})"
        return chunked, f"op by op, several times slower: {reason}", logging.WARNING
    return CompiledPass(), "compiled", logging.INFO


def _probe(device: torch.device) -> None:
    """Compiles one small kernel."""

    def double(values: torch.Tensor) -> torch.Tensor:
        return values * 2

    _compiled(double)(torch.ones(SMALLEST, device=device))


def _compiled(function: Any) -> Any:
    known = torch._inductor.list_options()
    options = {name: value for name, value in _OPTIONS.items() if name in known}
    return torch.compile(function, fullgraph=True, dynamic=True, options=options)


def _merge_with(method: Method) -> _Kernel:
    """The function to compile; with a code object of its own, since torch counts recompilations
    per code object."""

    def merge(out: torch.Tensor, operands: Operands, scalars: Mapping[str, torch.Tensor]) -> None:
        position = torch.arange(out.numel(), dtype=torch.int32, device=out.device)
        everything = Operands(
            base=operands.base.to(torch.float32),
            sources=tuple(source.to(torch.float32) for source in operands.sources),
            position=position.view(out.shape),
            block=operands.block,
            aids=operands.aids,
        )
        out.copy_(method.combine(everything, scalars))

    code = merge.__code__.replace(co_name=f"merge_{method.name}")
    return FunctionType(code, merge.__globals__, code.co_name, None, merge.__closure__)

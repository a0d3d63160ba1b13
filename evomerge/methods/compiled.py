"""The compiled pass: a method's `combine` fused by torch.compile into one kernel, on CPU and GPU.

Each operand is read once and the result is written straight into its place. Shapes are dynamic and
scalars are tensors, so that a method compiles once for a number of sources and their types, and
then serves every tensor and every recipe. The bits are those of `apply.chunked`: products and sums
are not contracted, divisions round as torch's do.
"""

import logging
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, Literal, NamedTuple

import torch
import torch.fx.experimental._config as shapes

from evomerge.methods.apply import Pass, chunked, limits_at, split_steps
from evomerge.methods.method import Method, Operands, Placed, Step

log = logging.getLogger(__name__)

SMALLEST = 2**12
"""Elements below which a launch costs more than the work; such tensors go chunk by chunk."""

WIDTH = 2**9
"""Elements that a CPU's kernel takes as one row. What depends on an element's position it reads
from small tables of such rows: to compute it costs a quarter of the time of TIES."""

WORTHWHILE = 2**24
"""Elements of a model from which compiling (seconds, once per method) repays within one search."""

Compile = Literal["auto", "always", "never"]

_OPTIONS: dict[str, Any] = {
    # A mask's hash is long but cheap. Realised on its own it would lose the wide vectors that
    # inductor chooses for loops that read bfloat16.
    "realize_opcount_threshold": 200,
    # So would what is made of many operands: TIES of five sources took ten times as long.
    "realize_acc_reads_threshold": 200,
    "realize_reads_threshold": 200,
    # Without these a GPU's bits would differ from those of the plain pass.
    "emulate_precision_casts": True,
    "eager_numerics.division_rounding": True,
}


class Tables(NamedTuple):
    """What depends on the position, for a kernel that works on rows of WIDTH elements."""

    columns: torch.Tensor
    """int32 [WIDTH]: positions within a row."""
    limits: Mapping[str, torch.Tensor]
    """float32 [sources, 3, WIDTH] by the name of a step: the rows before the one in which a number
    changes, that row, and those behind it."""
    rows: Mapping[str, torch.Tensor]
    """int32 [sources]: in which row it changes."""


_Kernel = Callable[
    [torch.Tensor, Operands, Mapping[str, torch.Tensor], Mapping[str, Step], Tables | None], None
]
"""(out, operands, scalars, steps, tables): see `_merge_with`."""


class CompiledPass:
    """A `Pass` with one kernel per method, number of sources and set of types.

    A method that cannot be compiled is announced in the log and goes chunk by chunk from then on.
    """

    def __init__(self) -> None:
        self._kernels: dict[str, _Kernel | None] = {}
        self._columns = torch.arange(WIDTH, dtype=torch.int32)

    def __call__(
        self,
        method: Method,
        out: torch.Tensor,
        operands: Operands,
        scalars: Placed,
    ) -> None:
        """See `Pass`."""
        kernel = self._kernel(method)
        if kernel is None or out.numel() < SMALLEST:
            chunked(method, out, operands, scalars)
            return
        in_rows = out.device.type == "cpu" and out.dim() == 1
        whole = out.numel() // WIDTH * WIDTH if in_rows else len(out)
        shape = (-1, WIDTH) if in_rows else out.shape
        target, cut = _part(out, operands, slice(whole))
        # A view's base is guarded, too; `data` has none, so that another base compiles nothing.
        target, cut = target.view(shape).data, _each(cut, lambda tensor: tensor.view(shape).data)
        plain, steps = split_steps(scalars)
        tables = self._tables(steps) if in_rows else None
        try:
            with shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
                kernel(target, cut, plain, {} if in_rows else steps, tables)
        except torch._dynamo.exc.TorchDynamoException as error:
            log.warning("%s is merged op by op: it does not compile: %s", method.name, error)
            self._kernels[method.name] = None
            chunked(method, out, operands, scalars)
        else:
            if whole < len(out):
                chunked(method, *_part(out, operands, slice(whole, None)), scalars)

    def _tables(self, steps: Mapping[str, Step]) -> Tables:
        """The tables of a tensor's steps."""
        limits, rows = {}, {}
        for name, (values, last) in steps.items():
            rows[name] = last.div(WIDTH, rounding_mode="floor")
            changing = self._columns <= (last - rows[name] * WIDTH)[:, None]
            before, behind = values[:, :, None].expand(-1, -1, WIDTH)
            middle = torch.where(changing, before, behind)
            limits[name] = torch.stack((before, middle, behind), dim=1)
        return Tables(columns=self._columns, limits=limits, rows=rows)

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
    per code object.

    With tables the operands are of shape [rows, WIDTH], and steps are not looked at.
    """

    def merge(
        out: torch.Tensor,
        operands: Operands,
        scalars: Mapping[str, torch.Tensor],
        steps: Mapping[str, Step],
        tables: Tables | None,
    ) -> None:
        if tables is None:
            position = torch.arange(out.numel(), dtype=torch.int32, device=out.device)
            position = position.view(out.shape)
            limits = limits_at(position, steps)
        else:
            position, limits = _from_tables(out, tables)
        everything = Operands(
            base=operands.base.to(torch.float32),
            sources=tuple(source.to(torch.float32) for source in operands.sources),
            position=position,
            block=operands.block,
            aids=operands.aids,
            limits=limits,
        )
        out.copy_(method.combine(everything, scalars))

    code = merge.__code__.replace(co_name=f"merge_{method.name}")
    return FunctionType(code, merge.__globals__, code.co_name, None, merge.__closure__)


def _from_tables(
    out: torch.Tensor, tables: Tables
) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, ...]]]:
    """Positions and limits, both [rows, WIDTH]."""
    assert out.shape[1] == WIDTH  # so that it is a constant of the kernel
    row = torch.arange(len(out), dtype=torch.int32)
    limits = {
        name: tuple(
            of_source[(row - tables.rows[name][i]).clamp(-1, 1).to(torch.int64) + 1]
            for i, of_source in enumerate(of_sources)
        )
        for name, of_sources in tables.limits.items()
    }
    return row[:, None] * WIDTH + tables.columns, limits


def _part(out: torch.Tensor, operands: Operands, piece: slice) -> tuple[torch.Tensor, Operands]:
    """Some elements of flat tensors, or rows; the position moves along."""
    cut = _each(operands, lambda tensor: tensor[piece])
    return out[piece], cut._replace(position=operands.position + (piece.start or 0))


def _each(operands: Operands, change: Callable[[torch.Tensor], torch.Tensor]) -> Operands:
    """The operands with their elements seen otherwise."""
    return operands._replace(
        base=change(operands.base),
        sources=tuple(change(source) for source in operands.sources),
        aids=tuple(change(aid) for aid in operands.aids),
    )

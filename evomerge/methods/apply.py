"""One tensor merged: its scalars from the method's coefficients, then one pass over its elements.

`chunked` is the plain pass, op by op on pieces that stay in the cache; it is also the oracle of
the compiled one (`evomerge.methods.compiled`). No bit of a result depends on the size of a chunk.
"""

from collections.abc import Callable, Mapping

import torch

from evomerge.methods.method import Method, Operands, Placed, Scalars, Statistics, Step, Value

CHUNK = 2**16
BLOCK = 2**31
"""Elements after which positions start again at 0, in the next block."""

Pass = Callable[[Method, torch.Tensor, Operands, Placed], None]
"""(method, out, operands, scalars): writes the merged elements to `out`.

out and operands are contiguous, of one shape ([n], or [rows, columns]), on one device, in any
floating type; `position` of the operands holds the first one's, 0-d, on the CPU. Their `limits`
are empty, the steps are among the scalars.
"""


def scalar_tensors(scalars: Scalars, device: torch.device) -> dict[str, torch.Tensor | Step]:
    """The numbers of `coefficients` as `combine` takes them: int32 or float32, on the device.

    One copy to the device for all of a type, since each costs a launch.
    """
    placed: dict[str, torch.Tensor | Step] = {}
    for dtype in (torch.int32, torch.float32):
        names = [
            name
            for name, values in scalars.items()
            if not isinstance(values, torch.Tensor | Step)
            and all(isinstance(v, int) for v in values) == (dtype == torch.int32)
        ]
        if not names:
            continue
        numbers = [value for name in names for value in scalars[name]]
        sizes = [len(scalars[name]) for name in names]
        pieces = torch.split(torch.tensor(numbers, dtype=dtype).to(device), sizes)
        placed |= dict(zip(names, pieces, strict=True))
    for name, values in scalars.items():
        if isinstance(values, torch.Tensor):
            placed[name] = values.to(device)
        elif isinstance(values, Step):
            placed[name] = Step(*(tensor.to(device) for tensor in values))
    return placed


def _in_block(scalars: Placed, block: int) -> Placed:
    """The scalars with positions counted from the start of a block, in int32."""
    return {
        name: values._replace(
            last=(values.last - block * BLOCK).clamp(-1, BLOCK - 1).to(torch.int32)
        )
        if isinstance(values, Step)
        else values
        for name, values in scalars.items()
    }


def split_steps(scalars: Placed) -> tuple[dict[str, torch.Tensor], dict[str, Step]]:
    """The plain scalars, and the steps."""
    steps = {name: values for name, values in scalars.items() if isinstance(values, Step)}
    plain = {name: values for name, values in scalars.items() if not isinstance(values, Step)}
    return plain, steps


def limits_at(
    position: torch.Tensor, steps: Mapping[str, Step]
) -> dict[str, tuple[torch.Tensor, ...]]:
    """`Operands.limits`, element by element."""
    return {
        name: tuple(
            torch.where(position <= step.last[i], step.values[0, i], step.values[1, i])
            for i in range(len(step.last))
        )
        for name, step in steps.items()
    }


def chunked(
    method: Method,
    out: torch.Tensor,
    operands: Operands,
    scalars: Placed,
    chunk: int = CHUNK,
) -> None:
    """A `Pass`, op by op. chunk: elements at a time, or at least one row."""
    plain, steps = split_steps(scalars)
    rows = out.dim() == 2
    width = out.shape[1] if rows else 1
    step = max(1, chunk // max(1, width))
    for start in range(0, len(out), step):
        piece = slice(start, start + step)
        target = out[piece]
        first = int(operands.position) + start * width
        index = torch.arange(first, first + target.numel(), device=out.device)
        position = index.to(torch.int32).view(target.shape)
        cut = Operands(
            base=operands.base[piece].to(torch.float32),
            sources=tuple(source[piece].to(torch.float32) for source in operands.sources),
            position=position,
            block=operands.block,
            aids=tuple(aid[piece] for aid in operands.aids),
            limits=limits_at(position, steps),
        )
        here = {
            name: values[:, piece] if values.dim() == 3 and values.shape[1] > 1 else values
            for name, values in plain.items()
        }
        target.copy_(method.combine(cut, here))


@torch.no_grad()
def merge_tensor(
    method: Method,
    base: torch.Tensor,
    sources: tuple[torch.Tensor, ...],
    parameters: Mapping[str, Value],
    statistics: Statistics,
    *,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    run: Pass = chunked,
) -> torch.Tensor:
    """The merged tensor, in the shape of the operands, which are of one shape and device.

    parameters: from `check_parameters`. out: any view on the operands' device, which is written
    and returned; otherwise a new tensor of `out_dtype` (default: the base's dtype). run: the pass
    that does the work. CandidateError where the method has no result for these parameters.
    """
    device = base.device
    if out is None:
        out = torch.empty(base.shape, dtype=out_dtype or base.dtype, device=device)
    if method.matrix is not None and base.dim() == 2:
        return _composed(method, base, parameters, statistics, out)
    if method.solve is not None:
        solved = method.solve(sources, parameters, statistics)
        if solved is not None:
            return out.copy_(solved)
    scalars = scalar_tensors(method.coefficients(parameters, statistics), device)
    aids = method.aids(parameters, statistics) if method.aids is not None else ()
    # A strided view cannot be flattened in place: it is filled at the end, without a second cast.
    whole = (
        out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    )
    by_row = any(not isinstance(v, Step) and v.dim() == 3 for v in scalars.values())
    shape = base.shape if by_row else (-1,)
    everything = [
        tensor.reshape(shape) for tensor in (whole, base, *sources, *(a.to(device) for a in aids))
    ]
    blocks = 1 if by_row else -(-whole.numel() // BLOCK)  # no method by row asks for positions
    for block in range(blocks):
        piece = slice(block * BLOCK, (block + 1) * BLOCK)
        cut = everything if blocks == 1 else [tensor[piece] for tensor in everything]
        operands = Operands(
            base=cut[1],
            sources=tuple(cut[2 : 2 + len(sources)]),
            position=torch.zeros((), dtype=torch.int32),
            block=torch.full((), block, dtype=torch.int32, device=device),
            aids=tuple(cut[2 + len(sources) :]),
        )
        run(method, cut[0], operands, _in_block(scalars, block))
    if whole is not out:
        out.copy_(whole)
    return out


def _composed(
    method: Method,
    base: torch.Tensor,
    parameters: Mapping[str, Value],
    statistics: Statistics,
    out: torch.Tensor,
) -> torch.Tensor:
    """A matrix method's tensor: the base plus what its factors compose."""
    assert method.matrix is not None
    every = tuple(range(statistics.sources + 1))
    kept = statistics.once(method.name, every, method.matrix.factors)
    factors = {name: tensor.to(base.device) for name, tensor in kept.items()}
    return out.copy_(base.to(torch.float32) + method.matrix.compose(factors, parameters))

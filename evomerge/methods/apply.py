"""One tensor merged op by op, chunk by chunk: the plain path, and the oracle of compiled ones."""

from collections.abc import Mapping

import torch

from evomerge.methods.method import Method, Scalars, Statistics, Value

CHUNK = 2**16


def scalar_tensors(scalars: Scalars, device: torch.device) -> dict[str, torch.Tensor]:
    """The numbers of `coefficients` as `combine` takes them: 1-D, int64 or float32."""
    return {
        name: torch.tensor(
            values,
            dtype=torch.int64 if all(isinstance(v, int) for v in values) else torch.float32,
            device=device,
        )
        for name, values in scalars.items()
    }


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
    device: torch.device | None = None,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """The merged tensor, in the shape of the operands, which are of one shape and any dtype.

    parameters: from `check_parameters`. out: any view, on any device, that is written and
    returned; otherwise a new tensor of `out_dtype` (default: the base's dtype) on the base's
    device. device: where to compute (default: the base's). chunk: elements at a time; no bit of
    the result depends on it. CandidateError where the method has no result for these parameters.
    """
    device = base.device if device is None else device
    scalars = scalar_tensors(method.coefficients(parameters, statistics), device)
    if out is None:
        out = torch.empty(base.shape, dtype=out_dtype or base.dtype, device=base.device)
    # A strided view cannot be flattened in place: it is filled at the end, without a second cast.
    whole = (
        out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    )
    flat = whole.view(-1)
    operands = [operand.reshape(-1) for operand in (base, *sources)]
    for start in range(0, flat.numel(), chunk):
        stop = min(start + chunk, flat.numel())
        first, *others = (o[start:stop].to(device).to(torch.float32) for o in operands)
        index = torch.arange(start, stop, device=device)
        flat[start:stop] = method.combine(first, tuple(others), scalars, index)
    if whole is not out:
        out.copy_(whole)
    return out

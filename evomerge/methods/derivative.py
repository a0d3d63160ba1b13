"""How a loss changes with a method's parameters, from its gradient at the merged tensor.

With G = ∂L/∂w and scalars s = coefficients(p), of which combine makes w:

    ∂L/∂p = Σ_s ⟨G, ∂w/∂s⟩ · ∂s/∂p

The inner products come from torch's autograd over `combine`, piece by piece; masks, trimming
thresholds and elected signs do not change with the weights but by jumps, and are held as they are.
For task arithmetic and the linear combination this is exact: ∂w/∂p_i is a task vector, or a source.
∂s/∂p, a few numbers of a cheap function, come from central differences in float64.
"""

from collections.abc import Mapping

import torch

from evomerge.methods.apply import limits_at, scalar_tensors, split_steps
from evomerge.methods.method import Method, Operands, Scalars, Statistics, Step, Value

_STEP = 1e-4
_CHUNK = {"cpu": 2**16, "cuda": 2**22}
"""Elements at a time; of each some thirty numbers are held."""

Slopes = Mapping[str, tuple[float, ...]]
"""∂L/∂p by the name of a parameter: one number, or one per source."""


def smooth_parameters(method: Method) -> tuple[str, ...]:
    """Parameters in which merged tensors are differentiable; none where the method works on whole
    matrices, through decompositions or solvers."""
    if method.matrix is not None or method.solve is not None:
        return ()
    return tuple(row.name for row in method.parameters if row.smooth)


def slopes(
    method: Method,
    gradient: torch.Tensor,
    base: torch.Tensor,
    sources: tuple[torch.Tensor, ...],
    parameters: Mapping[str, Value],
    statistics: Statistics,
) -> Slopes:
    """∂L/∂p of every smooth parameter.

    gradient: ∂L/∂w, of the operands' shape and device, any floating type. parameters: from
    `check_parameters`. The sums over elements are accumulated in float64.
    """
    scalars = method.coefficients(parameters, statistics)
    inner = _inner_products(method, gradient, base, sources, parameters, statistics, scalars)
    found = {}
    for name in smooth_parameters(method):
        value = parameters[name]
        found[name] = tuple(
            _along(method, parameters, statistics, name, place, inner)
            for place in range(len(value) if isinstance(value, tuple) else 1)
        )
    return found


def _inner_products(
    method: Method,
    gradient: torch.Tensor,
    base: torch.Tensor,
    sources: tuple[torch.Tensor, ...],
    parameters: Mapping[str, Value],
    statistics: Statistics,
    scalars: Scalars,
) -> dict[str, torch.Tensor]:
    """⟨G, ∂w/∂s⟩ by the name of a scalar: float64, on the CPU, in the scalar's shape."""
    device = base.device
    plain, steps = split_steps(scalar_tensors(scalars, device))
    leaves = {n: t.requires_grad_() for n, t in _separate(plain).items() if t.is_floating_point()}
    plain = {**plain, **leaves}
    aids = method.aids(parameters, statistics) if method.aids is not None else ()
    by_row = any(tensor.dim() == 3 for tensor in plain.values())
    shape = base.shape if by_row else (-1,)
    slope, start, *others = (
        tensor.reshape(shape)
        for tensor in (gradient, base, *sources, *(a.to(device) for a in aids))
    )
    width = slope.shape[1] if by_row else 1
    rows = max(1, _CHUNK.get(device.type, _CHUNK["cuda"]) // max(1, width))
    totals = {name: torch.zeros(t.shape, dtype=torch.float64) for name, t in leaves.items()}
    for first in range(0, len(slope), rows):
        piece = slice(first, first + rows)
        index = torch.arange(first * width, first * width + slope[piece].numel(), device=device)
        position = index.view(slope[piece].shape)
        cut = Operands(
            base=start[piece].to(torch.float32),
            sources=tuple(source[piece].to(torch.float32) for source in others[: len(sources)]),
            position=(position % 2**31).to(torch.int32),
            block=(index[0] // 2**31).to(torch.int32),
            aids=tuple(aid[piece] for aid in others[len(sources) :]),
            limits=limits_at(position, steps),
        )
        here = {n: t[:, piece] if t.dim() == 3 and t.shape[1] > 1 else t for n, t in plain.items()}
        with torch.enable_grad():
            merged = method.combine(cut, here)
        found = torch.autograd.grad(
            merged, list(leaves.values()), slope[piece].to(torch.float32), allow_unused=True
        )
        for name, part in zip(leaves, found, strict=True):
            if part is not None:
                totals[name] += part.double().cpu()
    return totals


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies: scalars of one type are parts of one tensor."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _along(
    method: Method,
    parameters: Mapping[str, Value],
    statistics: Statistics,
    name: str,
    place: int,
    inner: Mapping[str, torch.Tensor],
) -> float:
    """Σ_s ⟨G, ∂w/∂s⟩ · ∂s/∂p for one number of one parameter."""
    value = parameters[name]
    numbers = list(value) if isinstance(value, tuple) else [float(value)]
    size = _STEP * max(1.0, abs(numbers[place]))
    sides = []
    for direction in (size, -size):
        moved = [x + direction * (i == place) for i, x in enumerate(numbers)]
        given: Value = tuple(moved) if isinstance(value, tuple) else moved[0]
        sides.append(method.coefficients({**parameters, name: given}, statistics))
    total = 0.0
    for scalar, weight in inner.items():
        above, below = (_numbers(side[scalar]) for side in sides)
        total += float((weight * (above - below)).sum()) / (2 * size)
    return total


def _numbers(values: object) -> torch.Tensor:
    assert not isinstance(values, Step)  # they have no gradient
    tensor = values if isinstance(values, torch.Tensor) else torch.tensor(values)
    return tensor.double().cpu() if isinstance(values, torch.Tensor) else tensor.double()

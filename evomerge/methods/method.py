"""What a merge method is: a row of facts and two pure functions.

`coefficients` turns a recipe's parameters and a tensor's stored statistics into a few numbers;
`combine` turns the operands and those numbers into the merged tensor, elementwise. All that is
slow and the same for every candidate sits in the statistics, so that a candidate costs one pass.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch

Value = float | bool | tuple[float, ...]
"""A parameter's value: one number, one flag, or one number per source in the rule's order."""


class Step(NamedTuple):
    """Numbers, one per source, that change at a position of the flattened tensor."""

    values: torch.Tensor
    """float32 [2, sources]: up to that position, and behind it."""
    last: torch.Tensor
    """int64 [sources]: the last position of the first ones; -1 where there is none."""


Scalars = Mapping[str, Sequence[float] | Sequence[int] | torch.Tensor | Step]
"""What `coefficients` returns, by name: 1-D sequences (floats become float32, integers int32); a
float32 tensor [sources, rows, 1] or [sources, 1, columns], where numbers differ by row or column of
a 2-D tensor; or a `Step`, which reaches `combine` in `Operands.limits`."""

Placed = Mapping[str, torch.Tensor | Step]
"""The same as tensors, on the operands' device."""


class Operands(NamedTuple):
    """What `combine` reads of one tensor, or of a chunk of it.

    All are of one shape: [n] of the flattened tensor, or [rows, columns] where the scalars differ
    by row or column.
    """

    base: torch.Tensor
    """float32."""
    sources: tuple[torch.Tensor, ...]
    """float32, in the rule's order."""
    position: torch.Tensor
    """int32: of each element in the flattened tensor, modulo 2^31."""
    block: torch.Tensor
    """int32, 0-d: the same divided by 2^31; a chunk never crosses such a boundary."""
    aids: tuple[torch.Tensor, ...] = ()
    """What `Method.aids` gave, cut likewise, in its own types."""
    limits: Mapping[str, tuple[torch.Tensor, ...]] = {}
    """float32, of each `Step` by its name: one tensor per source, to be broadcast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a method, as checks, search spaces, help and documentation read it."""

    name: str
    default: float | bool
    help: str
    low: float = 0.0
    """Lower end of the range that a search explores unless its user says otherwise."""
    high: float = 1.0
    """Upper end of that range."""
    minimum: float = float("-inf")
    """Values below are errors."""
    maximum: float = float("inf")
    """Values above are errors."""
    per_source: bool = False
    """One value per source, instead of one for the rule."""
    shared: bool = False
    """A search proposes one value for all sources (where `per_source`)."""
    searched: bool = True
    """Explored by default; otherwise fixed at `default` unless its user gives a range."""
    step: float | None = None
    """Grid on which a search proposes values; None: continuous."""
    smooth: bool = False
    """Merged tensors are differentiable in it, where masks and elected signs are held."""


class Inputs(NamedTuple):
    """What a linear layer of one source was fed on the calibration text."""

    gram: torch.Tensor
    """XᵀX [in, in], float32, of the inputs X [tokens, in]; on any device."""
    dim: int
    """Dimension of the weight that meets the inputs: 1 of [out, in], 0 of [in, out]."""


Once = Callable[..., Mapping[str, torch.Tensor]]
"""(*operands) -> named tensors."""


class Statistics(Protocol):
    """What is known of one tensor before any candidate. Operand 0 is the base, i the i-th source
    of the rule."""

    @property
    def elements(self) -> int:
        """Number of elements of the tensor."""
        ...

    @property
    def sources(self) -> int:
        """Number of sources of the rule."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        ...

    def once(self, kind: str, of: tuple[int, ...], compute: Once) -> Mapping[str, torch.Tensor]:
        """What `compute` makes of these operands (0: the base), computed once for a whole run.

        kind names what is computed, in letters, digits and `_`. Results are kept in the run
        folder, on the CPU; `compute` gets the operands as stored, in their own shape, any device.
        """
        ...

    def gram(self, first: int, second: int) -> float:
        """Inner product of two operands, flattened, accumulated in float64."""
        ...

    def threshold(self, source: int, density: float) -> tuple[float, int]:
        """Where the largest `density` share of |source − base| ends, source counted from 1.

        Returns (magnitude, last_index): kept are the elements with a larger magnitude, and those
        of equal magnitude whose flat index is at most last_index. So exactly
        ⌊density · elements + ½⌋ elements are kept, however many tie. Nothing kept: (inf, -1).
        """
        ...

    def key(self, source: int) -> int:
        """62-bit key of this recipe's random mask for the source, counted from 1."""
        ...

    def activations(self, source: int) -> Inputs | None:
        """The source's inputs to this weight, source counted from 1; None for tensors that are no
        linear layer's weight."""
        ...


Need = Literal[
    "gram", "thresholds", "mask", "row ranks", "variances", "overlaps", "factors", "activations"
]

Coefficients = Callable[[Mapping[str, Value], Statistics], Scalars]
Combine = Callable[[Operands, Mapping[str, torch.Tensor]], torch.Tensor]
"""(operands, scalars) -> merged, float32, in the operands' shape.

Elementwise and in plain torch, so that it compiles into one pass. Scalars are float32 or int32
tensors, read as `scalars["weight"][i]`.
"""

Aids = Callable[[Mapping[str, Value], Statistics], tuple[torch.Tensor, ...]]
"""Tensors of the operands' shape that `combine` reads beside them; in a small type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """How a method treats tensors of two dimensions; all others go through `combine`."""

    factors: Once
    """(base, *sources), each [m, n] -> what candidates are composed of; computed once per run."""
    compose: Callable[[Mapping[str, torch.Tensor], Mapping[str, Value]], torch.Tensor]
    """(factors, parameters) -> the merged task vector, float32 [m, n], to be added to the base."""


Solve = Callable[
    [tuple[torch.Tensor, ...], Mapping[str, Value], Statistics],
    torch.Tensor | None,
]
"""(sources as stored, parameters, statistics) -> the merged tensor, float32 or float64; None for
tensors that go through `combine`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One row of METHODS."""

    name: str
    title: str
    paper: str
    formula: str
    parameters: tuple[Parameter, ...]
    coefficients: Coefficients
    combine: Combine
    needs_base: bool
    """The base enters the result (otherwise only shapes and names are taken from it)."""
    minimum_sources: int = 1
    maximum_sources: int | None = None
    aids: Aids | None = None
    matrix: Matrix | None = None
    solve: Solve | None = None
    zero_is_absent: bool = False
    """Whether a source of weight 0 leaves no trace: the result is that without it, bit by bit but
    for the sign of zeros."""
    needs: frozenset[Need] = frozenset()
    """Which statistics it asks for; `mask`: the keys of random masks."""

    def parameter(self, name: str) -> Parameter:
        """The row of one parameter; KeyError if the method has none of that name."""
        return {parameter.name: parameter for parameter in self.parameters}[name]

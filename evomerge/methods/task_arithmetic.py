"""Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089, section 2).

w = w0 + λ Σ p_i δ_i, with the task vector δ_i = w_i − w0
"""

from collections.abc import Mapping

import torch

from evomerge.methods.method import Method, Operands, Scalars, Statistics, Value
from evomerge.methods.parameters import LAMBDA, WEIGHT, number, numbers
from evomerge.methods.sums import add, weighted_deltas


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    return {"weight": numbers(parameters, "weight"), "lambda": [number(parameters, "lambda")]}


def _combine(operands: Operands, scalars: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return operands.base + scalars["lambda"][0] * add(weighted_deltas(operands, scalars))


TASK_ARITHMETIC = Method(
    name="task_arithmetic",
    title="Task arithmetic",
    paper="https://arxiv.org/abs/2212.04089",
    formula="w0 + λ Σ p_i δ_i",
    parameters=(WEIGHT, LAMBDA),
    coefficients=_coefficients,
    combine=_combine,
    needs_base=True,
    zero_is_absent=True,
)

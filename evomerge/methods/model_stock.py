"""Model Stock (Jang, Yun and Han 2024, arXiv 2403.19522, section 4.2).

w = w0 + t (mean of the w_i − w0), t = k cos θ / (1 + (k − 1) cos θ)        (eq. 4 for k models)

cos θ: the mean cosine between pairs of task vectors; of each row apart where `filter_wise`.
"""

from collections.abc import Mapping

import torch

from evomerge.errors import CandidateError
from evomerge.methods.method import Method, Parameter, Scalars, Statistics, Value
from evomerge.methods.parameters import flag
from evomerge.methods.products import gram_by, gram_of_all, gram_of_deltas
from evomerge.methods.sums import span

_SMALLEST = 1e-6


def _coefficients(parameters: Mapping[str, Value], statistics: Statistics) -> Scalars:
    by_row = flag(parameters, "filter_wise") and len(statistics.shape) == 2
    gram = gram_of_deltas(gram_by(statistics, 0) if by_row else gram_of_all(statistics))
    norms = gram.diagonal().clamp(min=0).sqrt().movedim(-1, 0)  # [k, ...]
    count = statistics.sources
    pairs = [(i, j) for i in range(count) for j in range(i)]
    lengths = torch.stack([norms[i] * norms[j] for i, j in pairs])
    products = torch.stack([gram[i, j] for i, j in pairs])
    # A task vector of no length has no direction in common with another.
    cosine = torch.where(lengths > 0, products / torch.where(lengths > 0, lengths, 1.0), 0.0)
    mean = cosine.mean(0).clamp(-1, 1)
    divisor = 1 + (count - 1) * mean
    if float(divisor.min()) < _SMALLEST:
        raise CandidateError(
            f"model_stock: the task vectors point away from each other (mean cosine"
            f" {float(mean.min()):.3f}), so that the centre of the models lies nowhere"
        )
    weight = (mean / divisor).expand(count, *mean.shape)  # t / k
    if by_row:
        return {"base": [1.0], "weight": weight.float().unsqueeze(-1)}
    return {"base": [1.0], "weight": weight.tolist()}


MODEL_STOCK = Method(
    name="model_stock",
    title="Model Stock",
    paper="https://arxiv.org/abs/2403.19522",
    formula="w0 + t · mean(δ_i), t = k c / (1 + (k−1) c), c = mean cosine of the δ_i",
    parameters=(
        Parameter(
            name="filter_wise",
            default=False,
            help="t of each row of a matrix apart",
            searched=False,
        ),
    ),
    coefficients=_coefficients,
    combine=span,
    needs_base=True,
    minimum_sources=2,
    needs=frozenset({"gram"}),
)

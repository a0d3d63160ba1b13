"""Inner products of sources or of task vectors, whole or by row and column."""

import torch

from evomerge.methods.method import Statistics


def gram_of_sources(statistics: Statistics) -> torch.Tensor:
    """[k, k] float64: inner products of the sources."""
    count = range(1, statistics.sources + 1)
    return torch.tensor([[statistics.gram(i, j) for j in count] for i in count]).double()


def gram_of_deltas(gram: torch.Tensor) -> torch.Tensor:
    """[k, k, ...]: inner products of the task vectors, from those of base and sources.

    ⟨w_i − w0, w_j − w0⟩; float64 leaves ten digits where task vectors are a thousandth of the base.
    """
    return gram[1:, 1:] - gram[1:, :1] - gram[:1, 1:] + gram[:1, :1]


def gram_of_all(statistics: Statistics) -> torch.Tensor:
    """[k + 1, k + 1] float64: inner products of base and sources."""
    count = range(statistics.sources + 1)
    return torch.tensor(
        [[statistics.gram(i, j) for j in count] for i in count], dtype=torch.float64
    )


def gram_by(statistics: Statistics, dimension: int) -> torch.Tensor:
    """[k + 1, k + 1, n] float64: inner products within each row (dimension 0) or column (1).

    The tensor must have two dimensions, [rows, columns]; n is the number of rows or columns.
    """
    every = tuple(range(statistics.sources + 1))
    kind = ("gram_by_row", "gram_by_column")[dimension]

    def products(*operands: torch.Tensor) -> dict[str, torch.Tensor]:
        gram = torch.empty(len(operands), len(operands), operands[0].shape[dimension])
        gram = gram.double()
        for i, first in enumerate(operands):
            for j, second in enumerate(operands[: i + 1]):
                product = (first.double() * second.double()).sum(1 - dimension)
                gram[i, j] = gram[j, i] = product.cpu()
        return {"gram": gram}

    return statistics.once(kind, every, products)["gram"]

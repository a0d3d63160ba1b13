"""Sign election and disjoint mean of TIES (Yadav et al. 2023, arXiv 2306.01708, section 3.2)."""

from collections.abc import Sequence

import torch

from evomerge.methods.method import Parameter
from evomerge.methods.sums import add

NORMALIZE = Parameter(
    name="normalize",
    default=True,
    help="divide by the sum of the weights' magnitudes over the agreeing sources",
    searched=False,
)


def shares(weights: Sequence[float], normalize: bool) -> Sequence[float]:
    """What each source adds to the divisor of `elect` where it agrees."""
    return [abs(weight) if normalize else 0.0 for weight in weights]


def elect(votes: tuple[torch.Tensor, ...], share: torch.Tensor) -> torch.Tensor:
    """Sum of the votes that have the elected sign, divided by the sum of their shares.

    The elected sign of an element is + where the votes sum to 0 or more. A vote of zero agrees
    with neither sign; a divisor of zero (nobody agrees, or no shares) counts as one.
    votes: one tensor [n] per source; share: [sources].
    """
    positive = add(votes) >= 0
    agreeing = tuple(torch.where(positive, vote > 0, vote < 0) for vote in votes)
    elected = add(
        tuple(torch.where(agree, vote, 0.0) for agree, vote in zip(agreeing, votes, strict=True))
    )
    divisor = add(tuple(torch.where(agree, share[i], 0.0) for i, agree in enumerate(agreeing)))
    return elected / torch.where(divisor == 0, 1.0, divisor)

"""Sign election and disjoint mean of TIES (Yadav et al. 2023, arXiv 2306.01708, section 3.2)."""

from collections.abc import Mapping, Sequence

import torch

from evomerge.methods.method import Parameter, Scalars
from evomerge.methods.sums import add

NORMALIZE = Parameter(
    name="normalize",
    default=True,
    help="divide by the sum of the weights' magnitudes over the agreeing sources",
    searched=False,
)


_SMALLEST = 1e-30  # a divisor where nobody agrees and there is nothing to divide


def divisors(weights: Sequence[float], normalize: bool) -> Scalars:
    """What `elect` divides by: the shares of those that agree, or 1."""
    return {
        "share": [abs(weight) if normalize else 0.0 for weight in weights],
        "divisor": [_SMALLEST if normalize else 1.0],
    }


def elect(votes: tuple[torch.Tensor, ...], scalars: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the votes that have the elected sign, divided by the sum of their shares.

    The elected sign of an element is + where the votes sum to 0 or more. A vote of zero agrees
    with neither sign; where nobody agrees the result is 0. NaN stays: it is in the result.
    votes: one tensor per source; scalars: those of `divisors`.
    """
    share = scalars["share"]
    sign = torch.where(add(votes) >= 0, 1.0, -1.0)
    opposed = tuple(vote * sign <= 0 for vote in votes)
    elected = add(
        tuple(torch.where(against, 0.0, vote) for against, vote in zip(opposed, votes, strict=True))
    )
    # The divisor starts at what it is where nobody agrees: no branch, so one compiled pass.
    shares = tuple(torch.where(against, 0.0, share[i]) for i, against in enumerate(opposed))
    return elected / add((scalars["divisor"][0], *shares))

"""Which beginnings of token sequences are worth reading once for all that share them.

A trunk is a beginning that many sequences have in common: few-shot examples, the opening of a chat
template. It is a prefix of token ids, never of text, for merges of tokens cross the boundary.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Tokens = tuple[int, ...]

_COST = 64  # tokens that a trunk must save beyond itself: looking it up is not free

_Run = tuple[int, int, int]
"""First and last of the sorted sequences, and the length that they share."""


def choose_trunks(sequences: Sequence[Tokens]) -> list[int]:
    """For each sequence, how many of its first tokens are its trunk; 0: none.

    A trunk is shared by all sequences that begin with it. Of all such choices the one that saves
    most tokens: a trunk of n sequences saves n - 1 times its length. Found bottom-up over the tree
    of common prefixes, so the time is that of sorting.
    """
    keys = [np.asarray(sequence, dtype=">u4").tobytes() for sequence in sequences]
    order = sorted(range(len(sequences)), key=keys.__getitem__)
    ordered = [np.frombuffer(keys[place], dtype=">u4") for place in order]
    lengths = [0] * len(sequences)
    for first, last, length in _best_runs(ordered):
        for place in order[first : last + 1]:
            lengths[place] = length
    return lengths


def _best_runs(ordered: Sequence[NDArray[np.uint32]]) -> list[_Run]:
    """The runs that save most, by a stack of nested runs (left end, shared length, best within)."""
    stack: list[tuple[int, int, int, list[_Run]]] = [(0, 0, 0, [])]
    for place in range(1, len(ordered) + 1):
        shared = _common(ordered[place - 1], ordered[place]) if place < len(ordered) else -1
        left, saved, runs = place - 1, 0, list[_Run]()
        while stack and stack[-1][1] > shared:
            first, length, inner_saved, inner = stack.pop()
            inner_saved, inner = inner_saved + saved, [*inner, *runs] if runs else inner
            own = (place - 1 - first) * length - _COST
            left, (saved, runs) = (
                first,
                max(
                    (inner_saved, inner),
                    (own, [(first, place - 1, length)]),
                    key=lambda best: best[0],
                ),
            )
        if shared < 0:
            return runs
        if stack and stack[-1][1] == shared:
            first, length, inner_saved, inner = stack.pop()
            stack.append((first, length, inner_saved + saved, [*inner, *runs]))
        else:
            stack.append((left, shared, saved, runs))
    return []


def _common(left: NDArray[np.uint32], right: NDArray[np.uint32]) -> int:
    """Length of the longest common prefix."""
    size = min(len(left), len(right))
    differing = np.flatnonzero(left[:size] != right[:size])
    return int(differing[0]) if len(differing) else size

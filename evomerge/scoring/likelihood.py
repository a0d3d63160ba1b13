"""Log-likelihoods of continuations: what is read once, and which rows share a forward pass.

Only positions whose logits are read go through the output embedding. Pairs that the model reads
alike (choices of one token) share a row; rows with a common beginning (the question before its
choices) share its keys and values; and beginnings with a common trunk (the few-shot examples)
share those of the trunk, which is read once per candidate.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from evomerge.scoring.prefixes import Tokens, choose_trunks

_WORTH_SHARING = 4  # tokens; a shorter beginning costs more to look up than to read again

Pair = tuple[list[int], list[int]]
"""Tokens of a context (never empty) and of its continuation (never empty)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one forward pass may take."""

    tokens: int
    """Rows times columns of the tokens that it computes."""
    held: int
    """Rows times columns of the tokens whose keys and values it holds, computed or looked up."""
    logits: int
    """Positions that go through the output embedding."""
    window: int | None = None
    """Of the shortest sliding window. Attention counts slots, so padding between a trunk and what
    follows it must not push tokens out of the window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence that the model reads, and the pairs whose continuations end it."""

    tokens: Tokens
    """Without what is shared."""
    numbers: tuple[int, ...]
    """Of the pairs. All their continuations but the last token are the last of `tokens`."""
    reads: int
    """Number of its last positions whose logits are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows with a common beginning."""

    trunk: Tokens
    """Shared with other groups, of other passes too; () for none."""
    beginning: Tokens
    """Between trunk and rows, read once for all of them; () for none."""
    rows: tuple[Row, ...]

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.tokens) for row in self.rows)


def plan_passes(
    pairs: Sequence[Pair], *, max_length: int, limits: Limits, share: bool
) -> list[tuple[Group, ...]]:
    """The groups of each forward pass, the longest first; every pair is in one of them, once.

    Where a pair is longer than max_length + 1 tokens, its beginning is cut off, as in lm-eval.
    share: whether the model can go on from the keys and values of what is shared.
    """
    groups = _groups(pairs, max_length)
    if not share:
        groups = [alone for group in groups for alone in _alone(group)]
    else:
        trunks = choose_trunks([group.beginning for group in groups])
        groups = [
            part
            for group, length in zip(groups, trunks, strict=True)
            for part in _cut(group, length, limits)
        ]
    groups.sort(key=lambda g: (not g.beginning, -len(g.trunk), g.trunk, *_length(g)))
    return list(_batches(groups, limits))


def _groups(pairs: Sequence[Pair], max_length: int) -> list[Group]:
    """Rows of equal tokens become one, those with one beginning a group."""
    numbers: dict[Tokens, list[int]] = defaultdict(list)
    for number, (context, continuation) in enumerate(pairs):
        numbers[tuple((context + continuation)[-(max_length + 1) : -1])].append(number)
    rows: dict[Tokens, list[Row]] = defaultdict(list)
    for tokens, own in numbers.items():
        reads = max(len(pairs[number][1]) for number in own)
        start = len(tokens) - reads
        rows[tokens[:start]].append(Row(tokens=tokens[start:], numbers=tuple(own), reads=reads))
    return [Group(trunk=(), beginning=start, rows=tuple(own)) for start, own in rows.items()]


def _alone(group: Group) -> Iterator[Group]:
    """Each row by itself, right behind the trunk."""
    for row in group.rows:
        whole = replace(row, tokens=group.beginning + row.tokens)
        yield Group(trunk=group.trunk, beginning=(), rows=(whole,))


def _cut(group: Group, trunk: int, limits: Limits) -> Iterator[Group]:
    """With its trunk cut off, and in parts that fit into a pass each."""
    if limits.window is not None and len(group.beginning) + group.width >= limits.window:
        trunk = 0
    own = replace(group, trunk=group.beginning[:trunk], beginning=group.beginning[trunk:])
    if len(group.rows) == 1 or len(own.beginning) < _WORTH_SHARING:
        yield from _alone(own)
        return
    held = len(group.beginning) + group.width
    count = max(1, min(limits.tokens // group.width, limits.held // held))
    for start in range(0, len(group.rows), count):
        yield replace(own, rows=group.rows[start : start + count])


def _length(group: Group) -> tuple[int, Tokens, Tokens]:
    """Longest first, then by tokens, so that the order depends on nothing else."""
    longest = len(group.beginning) or len(group.rows[0].tokens)
    return -longest, group.beginning, group.rows[0].tokens


def _batches(groups: Sequence[Group], limits: Limits) -> Iterator[tuple[Group, ...]]:
    batch: list[Group] = []
    size = _Size()
    for group in groups:
        larger = size.with_group(group)
        if batch and (bool(group.beginning) != bool(batch[0].beginning) or not larger.fits(limits)):
            yield tuple(batch)
            batch, larger = [], _Size().with_group(group)
        batch.append(group)
        size = larger
    if batch:
        yield tuple(batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    """Of a batch that is being filled."""

    groups: int = 0
    rows: int = 0
    trunk: int = 0
    beginning: int = 0
    width: int = 0
    logits: int = 0

    def with_group(self, group: Group) -> "_Size":
        return _Size(
            groups=self.groups + 1,
            rows=self.rows + len(group.rows),
            trunk=max(self.trunk, len(group.trunk)),
            beginning=max(self.beginning, len(group.beginning)),
            width=max(self.width, group.width),
            logits=self.logits + sum(row.reads for row in group.rows),
        )

    def fits(self, limits: Limits) -> bool:
        slots = self.trunk + self.beginning + self.width
        return (
            self.groups * self.beginning <= limits.tokens
            and self.rows * self.width <= limits.tokens
            and self.rows * slots <= limits.held
            and self.logits <= limits.logits
            and (limits.window is None or not self.trunk or slots < limits.window)
        )

"""Vocabularies compared token by token: which row of one model stands for which token of another.

Plain functions on what tokenizers say (token -> number); they know no model and no tensor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import UserError

Tokens = tuple[str | int, ...]
"""The tokens of a vocabulary by their numbers; a number that no token has stands for itself."""

LACKS = -1
"""In a row map: the model has no row for this token."""

_SPARSE, _GAP = 4, 100_000  # numbers per token, and beside, up to which gaps are believed
_SHOWN = 3  # names in a sentence


def tokens_of(numbers: Mapping[str, int]) -> Tokens:
    """The tokens in the order of their numbers, up to the highest of them.

    UserError where that is so far off that the numbers cannot be those of a model's rows.
    """
    highest = max(numbers.values(), default=-1)
    if highest > _SPARSE * len(numbers) + _GAP:
        token = max(numbers, key=lambda each: numbers[each])
        raise UserError(
            f"token {token!r:.80} has number {highest}, of {len(numbers)} tokens; expected numbers "
            "from 0 with few gaps, since each is a row of the embeddings: is "
            "tokenizer.json damaged?"
        )
    by_number = {number: token for token, number in sorted(numbers.items())}
    return tuple(by_number.get(number, number) for number in range(max(by_number, default=-1) + 1))


def row_map(result: Tokens, own: Tokens) -> tuple[int, ...]:
    """For each token of the result the number that it has in a model's own vocabulary, or LACKS."""
    numbers = {token: number for number, token in enumerate(own)}
    return tuple(numbers.get(token, LACKS) for token in result)


def check_fits(name: str, tokens: Tokens, rows: int) -> None:
    """UserError that names the first token whose number is no row of the model's embeddings."""
    if len(tokens) > rows:
        number = next(n for n in range(rows, len(tokens)) if isinstance(tokens[n], str))
        raise UserError(
            f"{name}: token {tokens[number]!r} has number {number}, but the embeddings have only "
            f"{rows} rows; expected a row for every token: take the token out of the tokenizer, or "
            "resize the model's embeddings (resize_token_embeddings of transformers) and save it"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How a source's vocabulary differs from the base's; tokens in the order of their numbers."""

    added: tuple[str, ...]
    """Tokens that the base does not have."""
    lacking: tuple[str, ...]
    """Tokens of the base that the source does not have."""
    moved: tuple[str, ...]
    """Tokens that both have, under different numbers."""

    def __bool__(self) -> bool:
        return bool(self.added or self.lacking or self.moved)

    def sentence(self) -> str:
        """`adds 2 tokens ('<a>', '<b>'), lacks 1 token ('x')`."""
        parts = (("adds", self.added), ("lacks", self.lacking), ("moves", self.moved))
        return ", ".join(f"{verb} {some(tokens)}" for verb, tokens in parts if tokens)


def difference(own: Tokens, base: Tokens) -> Difference:
    """Compares a source's vocabulary with the base's."""
    ours, theirs = (
        {token: number for number, token in enumerate(tokens) if isinstance(token, str)}
        for tokens in (own, base)
    )
    return Difference(
        added=tuple(token for token in ours if token not in theirs),
        lacking=tuple(token for token in theirs if token not in ours),
        moved=tuple(token for token in ours if theirs.get(token, ours[token]) != ours[token]),
    )


def some(tokens: Sequence[str]) -> str:
    """`5 tokens ('a', 'b', 'c', ...)`."""
    names = ", ".join(repr(token) for token in tokens[:_SHOWN])
    more = ", ..." if len(tokens) > _SHOWN else ""
    return f"{len(tokens)} token{'s' * (len(tokens) != 1)} ({names}{more})"


def moved_ids(
    settings: Mapping[str, Any], base: Tokens, result: Tokens, known: Mapping[str, int | None]
) -> dict[str, Any]:
    """The `*_token_id` settings of a configuration of the base, by the result's numbers.

    Only those that change. A number, or a list of them, moves to where its token is; where the
    result has no such token, `known` (setting -> number) may name another, or the setting is None.
    """
    moved: dict[str, Any] = {}
    if result[: len(base)] == base:
        return moved
    numbers = {token: number for number, token in enumerate(result)}

    def follow(number: int) -> int | None:
        return numbers.get(base[number]) if 0 <= number < len(base) else None

    for key, value in settings.items():
        if not key.endswith("_token_id") or value is None:
            continue
        if isinstance(value, list):
            found: Any = [new for each in value if (new := follow(each)) is not None]
        else:
            found = follow(value)
        if found in (None, []):
            found = known.get(key)
        if found != value:
            moved[key] = found
    return moved

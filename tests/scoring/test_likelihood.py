"""Plans of forward passes: nothing is forgotten, nothing is read twice without need."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.scoring.likelihood import Group, Limits, Pair, plan_passes
from evomerge.scoring.prefixes import Tokens, choose_trunks

LIMITS = Limits(tokens=64, held=512, logits=100)

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=12)
pairs_strategy = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=25)


def whole_rows(passes: list[tuple[Group, ...]]) -> dict[int, Tokens]:
    """Pair -> all tokens that its row is read behind and with."""
    found = {}
    for groups in passes:
        for group in groups:
            for row in group.rows:
                for number in row.numbers:
                    assert number not in found
                    found[number] = group.trunk + group.beginning + row.tokens
    return found


@given(pairs_strategy, st.booleans(), st.sampled_from([None, 8, 20]))
@settings(max_examples=200, deadline=None)
def test_every_pair_is_read_once_and_whole(
    pairs: list[Pair], share: bool, window: int | None
) -> None:
    limits = Limits(tokens=32, held=128, logits=20, window=window)
    passes = plan_passes(pairs, max_length=14, limits=limits, share=share)
    expected = {n: tuple((c + a)[-15:-1]) for n, (c, a) in enumerate(pairs)}
    assert whole_rows(passes) == expected
    for groups in passes:
        assert len({bool(group.beginning) for group in groups}) == 1
        rows = [row for group in groups for row in group.rows]
        for row in rows:
            assert row.reads == max(len(pairs[number][1]) for number in row.numbers)
            assert 0 < row.reads <= len(row.tokens)
        width = max(len(row.tokens) for row in rows)
        slots = width + max(len(g.trunk) for g in groups) + max(len(g.beginning) for g in groups)
        if len(groups) > 1:
            assert len(rows) * width <= limits.tokens
            assert len(rows) * slots <= limits.held
            assert sum(row.reads for row in rows) <= limits.logits
        if window is not None and any(group.trunk for group in groups):
            assert slots < window
        if not share:
            assert all(not group.trunk and not group.beginning for group in groups)


def test_few_shot_examples_questions_and_choices_are_each_read_once() -> None:
    """5-shot, 4 choices: examples once in all, each question once, each choice once."""
    generator = random.Random(0)
    examples = [generator.randrange(100, 200) for _ in range(300)]
    pairs: list[Pair] = []
    for question in range(10):
        context = [*examples, question, *(generator.randrange(100) for _ in range(20))]
        pairs += [(context, [200 + choice, 0, 1]) for choice in range(4)]
    limits = Limits(tokens=2048, held=16384, logits=4096)
    passes = plan_passes(pairs, max_length=1000, limits=limits, share=True)
    trunks = {group.trunk for groups in passes for group in groups}
    assert trunks == {tuple(examples)}
    computed = sum(
        len(group.beginning) + sum(len(row.tokens) for row in group.rows)
        for groups in passes
        for group in groups
    )
    assert computed == 10 * (20 + 4 * 3)


def test_choices_of_one_token_share_a_row() -> None:
    pairs: list[Pair] = [([1, 2, 3, 4], [answer]) for answer in range(10, 14)]
    ((group,),) = plan_passes(pairs, max_length=100, limits=LIMITS, share=True)
    (row,) = group.rows
    assert row.numbers == (0, 1, 2, 3)
    assert row.tokens == (1, 2, 3, 4)
    assert row.reads == 1


def saved(sequences: list[Tokens], lengths: list[int]) -> int:
    """Tokens that need not be read, less what trunks cost."""
    trunks: dict[Tokens, int] = {}
    for sequence, length in zip(sequences, lengths, strict=True):
        if length:
            trunks[sequence[:length]] = trunks.get(sequence[:length], 0) + 1
    return sum((count - 1) * len(trunk) - 5 for trunk, count in trunks.items())


def best_saving(sequences: list[Tokens]) -> int:
    """By trying all: every sequence has one of its beginnings as trunk, with all that share it."""
    ordered = sorted(sequences)
    best = [0] * (len(ordered) + 1)
    for end in range(1, len(ordered) + 1):
        best[end] = best[end - 1]
        for start in range(end - 1):
            for length in range(1, len(ordered[start]) + 1):
                trunk = ordered[start][:length]
                sharing = [place for place, s in enumerate(ordered) if s[:length] == trunk]
                if sharing == list(range(start, end)):
                    best[end] = max(best[end], best[start] + (end - start - 1) * length - 5)
    return best[-1]


@given(st.sets(st.lists(st.integers(0, 1), min_size=1, max_size=12).map(tuple), min_size=1))
@settings(max_examples=150, deadline=None)
def test_trunks_save_as_much_as_any_choice(sequences: set[Tokens]) -> None:
    ordered = list(sequences)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evomerge.scoring.prefixes._COST", 5)
        assert saved(ordered, choose_trunks(ordered)) == best_saving(ordered)

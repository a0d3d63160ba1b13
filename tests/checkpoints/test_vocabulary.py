"""Row maps against their definition; differences and moved numbers in plain cases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.checkpoints.vocabulary import (
    LACKS,
    check_fits,
    difference,
    moved_ids,
    row_map,
    tokens_of,
)
from evomerge.errors import UserError

WORDS = st.lists(st.sampled_from("abcdefgh"), unique=True).map(tuple)


def test_numbers_without_a_token_stand_for_themselves() -> None:
    assert tokens_of({"a": 0, "b": 3}) == ("a", 1, 2, "b")
    assert tokens_of({}) == ()
    assert row_map(("a", 1, "b"), ("b", 1, "a")) == (2, 1, 0)


@given(WORDS, WORDS)
def test_a_row_map_leads_from_each_token_to_itself(result: tuple[str], own: tuple[str]) -> None:
    places = row_map(result, own)
    assert len(places) == len(result)
    for token, place in zip(result, places, strict=True):
        assert (place == LACKS) if token not in own else (own[place] == token)
    assert row_map(own, own) == tuple(range(len(own)))


def test_a_difference_is_told_in_words() -> None:
    found = difference(("b", "a", "c", "d", "e", "f"), ("a", "b", "x"))
    assert found.sentence() == (
        "adds 4 tokens ('c', 'd', 'e', ...), lacks 1 token ('x'), moves 2 tokens ('b', 'a')"
    )
    assert not difference(("a", 1, "b"), ("a", 1, "b"))


def test_a_token_without_a_row_is_named() -> None:
    check_fits("chat", ("a", "b"), 2)
    with pytest.raises(UserError, match=r"chat: token 'c' has number 3, but .* only 3 rows"):
        check_fits("chat", ("a", "b", 2, "c"), 3)


def test_settings_follow_their_tokens() -> None:
    base, result = ("pad", "s", "e"), ("x", "e", "s")
    settings = {"bos_token_id": 1, "eos_token_id": [2, 1], "pad_token_id": 0, "vocab_size": 3}
    moved = moved_ids(settings, base, result, {"pad_token_id": 0})
    assert moved == {"bos_token_id": 2, "eos_token_id": [1, 2]}
    assert moved_ids({"pad_token_id": 0, "sep_token_id": None}, base, result, {}) == {
        "pad_token_id": None
    }
    assert moved_ids(settings, base, (*base, "more"), {}) == {}

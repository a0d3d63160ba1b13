"""Spoilt searches, recipes, and merges of mergekit."""

import pytest

from tests.fuzz.conftest import Send


@pytest.mark.filterwarnings("ignore")  # of libraries, about what is damaged
@pytest.mark.parametrize(
    ("door", "count"), [("configurations", 400), ("recipes", 300), ("mergekit", 300)]
)
def test_each_input_is_accepted_or_clearly_refused(send: Send, door: str, count: int) -> None:
    send(door, count)

"""Spoilt model folders: weights, indexes, settings, adapters, tokenizers, GGUF files."""

import pytest

from tests.fuzz.conftest import Send


@pytest.mark.filterwarnings("ignore")  # of libraries, about what is damaged
@pytest.mark.parametrize(
    ("door", "count"),
    [("checkpoints", 800), ("adapters", 400), ("gguf", 400), ("models", 40), ("tokenizers", 250)],
)
def test_each_input_is_accepted_or_clearly_refused(send: Send, door: str, count: int) -> None:
    send(door, count)

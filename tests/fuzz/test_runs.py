"""Spoilt run folders, and addresses of the dashboard."""

import pytest

from tests.fuzz.conftest import Send


@pytest.mark.filterwarnings("ignore")  # of libraries, about what is damaged
@pytest.mark.parametrize(
    ("door", "count"), [("addresses", 300), ("journals", 120), ("reports", 100), ("run_files", 120)]
)
def test_each_input_is_accepted_or_clearly_refused(send: Send, door: str, count: int) -> None:
    send(door, count)

"""The documentation says what the rows say."""

from pathlib import Path

from evomerge.methods.table import methods_table

TABLE = Path(__file__).parent.parent.parent / "configs" / "METHODS.md"


def test_the_committed_table_is_that_of_the_rows() -> None:
    assert TABLE.read_text() == methods_table()

"""What comes back is waited for; what does not is told at once."""

import errno
import logging

import pytest
from sqlalchemy.exc import OperationalError

from evomerge.errors import UserError
from evomerge.searching import patience
from evomerge.searching.patience import patiently
from evomerge.searching.storage import _passes, without_password


def failing(times: int, error: BaseException) -> tuple[list[int], object]:
    tries: list[int] = []

    def action() -> str:
        tries.append(1)
        if len(tries) <= times:
            raise error
        return "done"

    return tries, action


def test_a_full_disk_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    tries, action = failing(2, OSError(errno.ENOSPC, "No space left on device"))
    with caplog.at_level(logging.WARNING):
        assert patiently("writing", action) == "done"  # type: ignore[arg-type]
    assert len(tries) == 3
    assert "writing: OSError: [Errno 28] No space left on device; tried again" in caplog.text


def test_other_errors_are_told_at_once() -> None:
    tries, action = failing(2, OSError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionError):
        patiently("writing", action)  # type: ignore[arg-type]
    assert len(tries) == 1


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_HOURS", 0.1 / 3600)
    _, action = failing(1000, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(UserError, match="Input/output error; given up"):
        patiently("writing", action)  # type: ignore[arg-type]


def test_which_errors_of_a_storage_may_pass() -> None:
    lost = OperationalError("SELECT 1", {}, Exception("server closed the connection"))
    wrapped = RuntimeError("during the commit")
    wrapped.__cause__ = lost
    assert _passes(lost)
    assert _passes(wrapped)
    assert not _passes(KeyError("no such study"))


def test_no_password_is_shown() -> None:
    assert without_password("postgresql://me:s3cret@db/night") == "postgresql://me:***@db/night"
    assert without_password("postgresql://me@db/night") == "postgresql://me@db/night"

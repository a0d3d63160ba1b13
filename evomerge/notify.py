"""Tells somebody that a search has ended: a web hook, or a command of the user's own.

Only a configuration names one. Recipes and run folders may come from others, and a command runs
code, so nothing here is ever read from them.
"""

import http.client
import json
import logging
import os
import platform
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

KEPT_NOTIFY = "***"
"""What a run's record has instead of whom it tells; it notifies nobody."""
_URL_SECONDS = 10.0
_COMMAND_SECONDS = 30.0
EndState = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """How a search ended, as it is sent."""

    run: str
    """The run folder."""
    state: EndState
    sentence: str
    """The verdict, or what went wrong."""
    winner: str | None = None
    points: float | None = None
    """The winner's on the holdout, 0 to 100."""
    host: str = field(default_factory=platform.node)


def send(target: str, notice: Notice) -> None:
    """POSTs the notice as JSON to an http(s) URL, or gives it to a shell command on its standard
    input, with run, state and sentence in the environment.

    A target that does not answer is a warning in the log: it must not cost a search its result.
    """
    problem = _post(target, notice) if is_url(target) else _run(target, notice)
    if problem is None:
        log.info("notified %s", describe_target(target))
    else:
        log.warning("%s was not notified: %s", describe_target(target), problem)


def is_url(target: str) -> bool:
    """Whether it is a web hook, not a command."""
    return target.startswith(("http://", "https://"))


def describe_target(target: str) -> str:
    """The host of a URL, whose path may be a secret, or the program of a command, whose other words
    may be one."""
    if is_url(target):
        return f"{urlsplit(target).hostname} (POST)"
    words = [word for word in target.split() if "=" not in word]  # not NAME=value before it
    return f"`{words[0]} ...`" if words else "the command"


def _post(url: str, notice: Notice) -> str | None:
    """What went wrong; None where nothing did."""
    request = urllib.request.Request(
        url,
        data=json.dumps(asdict(notice)).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "evomerge"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=_URL_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"it answered {error.code} {error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def _run(command: str, notice: Notice, seconds: float = _COMMAND_SECONDS) -> str | None:
    """What went wrong; None where nothing did. What the command starts ends with it in time."""
    told = {
        "EVOMERGE_RUN": notice.run,
        "EVOMERGE_STATE": notice.state,
        "EVOMERGE_SENTENCE": notice.sentence,
    }
    try:
        return _finish(
            command, json.dumps(asdict(notice)).encode(), {**os.environ, **told}, seconds
        )
    except (OSError, ValueError) as error:  # no shell, or a sentence that no environment holds
        return f"{type(error).__name__}: {error}"


def _finish(
    command: str, given: bytes, environment: Mapping[str, str], seconds: float
) -> str | None:
    with subprocess.Popen(
        ["sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(given, timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return f"it did not end within {seconds:g} s"
    if process.returncode:
        last = output.decode(errors="replace").strip()[-500:]
        return f"it ended with {process.returncode}" + (f": {last}" if last else "")
    return None

"""The clock is set back while a search runs; libfaketime does it, for one process and its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge import load_config
from evomerge.describe import describe_run
from evomerge.frames import whole_frame
from evomerge.report import read_run

Faulty = Callable[..., Path]
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))

BACK = """\
import time

def fault(number, model, documents):
    if number == 5 and (HERE / "clock").read_text() == "+0":
        before = time.time()
        (HERE / "clock").write_text("-3h")
        deadline = time.monotonic() + 20
        while time.time() > before - 3600 and time.monotonic() < deadline:
            time.sleep(0.01)
        (HERE / "set_back").write_text(str(before - time.time()))
"""


@pytest.mark.skipif(not LIBRARIES, reason="libfaketime is not installed (apt install faketime)")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_clock_that_is_set_back_breaks_nothing(faulty: Faulty, workers: int) -> None:
    config = faulty(BACK)
    text = config.read_text().replace("budget: {trials: 12}", "budget: {trials: 12, hours: 1}")
    config.write_text(text)
    (config.parent / "clock").write_text("+0")
    settings = {
        **os.environ,
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(config.parent / "clock"),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    command = [sys.executable, "-m", "evomerge", "search", str(config)]
    answer = subprocess.run(
        [*command, "--workers", str(workers)],
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert float((config.parent / "set_back").read_text()) > 3600
    assert "died" not in answer.stderr
    assert "Traceback" not in answer.stderr
    folder = load_config(config).output()
    report = read_run(folder)
    assert report.counts()["complete"] == 12
    assert report.verdict is not None
    assert all(record.retry_of is None for record in report.records)
    assert all(spent >= 0 for record in report.records for spent in record.seconds.values())
    assert json.loads(whole_frame(report).to_json())
    assert "-" not in describe_run(folder).partition("time")[2].partition("\n")[0]

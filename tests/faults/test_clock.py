"""The clock is set back while a search runs.

What the search's processes are told of the time comes from here, in Python: a library that is
loaded before (libfaketime) breaks Python's sleep. Monotonic clocks stand outside of it, as they do
when a clock is set.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge import load_config
from evomerge.frames import whole_frame
from evomerge.report import read_run

pytestmark = pytest.mark.slow
Faulty = Callable[..., Path]

BACK = """\
import sys, time
from datetime import datetime

CLOCK = HERE / "clock"
true_time = time.time
time.time = lambda: true_time() + float(CLOCK.read_text())

class Set(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.fromtimestamp(time.time(), tz)

for name, module in list(sys.modules.items()):
    if name.startswith(("evomerge.", "optuna.")) and vars(module).get("datetime") is datetime:
        module.datetime = Set

def fault(number, model, documents):
    if number == 3 and CLOCK.read_text() == "0":
        import evomerge.searching.loop as loop
        before = time.time(), loop.datetime.now()
        CLOCK.write_text("-10800")
        told = before[0] - time.time(), (before[1] - loop.datetime.now()).total_seconds()
        (HERE / "set_back").write_text(" ".join(map(str, told)))
"""


def test_a_clock_that_is_set_back_breaks_nothing(faulty: Faulty) -> None:
    config = faulty(BACK)
    text = config.read_text().replace("{trials: 12}", "{trials: 12, hours: 1}")
    config.write_text(text)
    folder = config.parent
    (folder / "clock").write_text("0")
    command = [sys.executable, "-m", "evomerge", "search", str(config)]
    answer = subprocess.run(
        [*command, "--workers", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    told = map(float, (folder / "set_back").read_text().split())
    assert all(seconds == pytest.approx(10800, abs=60) for seconds in told)
    assert "died" not in answer.stderr
    assert "Traceback" not in answer.stderr
    report = read_run(load_config(config).output())
    assert report.counts()["complete"] == 12
    assert report.verdict is not None
    assert all(record.retry_of is None for record in report.records)
    assert all(spent >= 0 for record in report.records for spent in record.seconds.values())
    frame = whole_frame(report)
    assert (frame["started"].diff().dt.total_seconds() < -10000).sum() == 1
    for name in frame.columns:
        if name.startswith("seconds"):
            assert not (frame[name] < 0).any()

"""How a run ended: what its study keeps, what status says, and who is told."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge import UserError, load_config, notify, read_run, search
from evomerge.describe import describe_check, describe_run
from evomerge.notify import Notice, send
from evomerge.searching.progress import Progress
from evomerge.searching.record import TrialRecord
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.study import find_study
from evomerge.verbs import check

Small = Callable[..., Path]
NOTICE = Notice(
    run="/runs/one", state="finished", sentence="Better.", winner="trial 3", points=61.0
)


class Hook(HTTPServer):
    """Keeps what is posted to it."""

    answer = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.posted: list[tuple[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/secret"


class Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        content = json.loads(self.rfile.read(length))
        self.server.posted.append((self.headers["Content-Type"], content))
        self.send_response(self.server.answer)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        pass


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def with_notify(path: Path, target: str) -> Path:
    path.write_text(path.read_text() + yaml.safe_dump({"notify": target}))
    return path


def to_file(path: Path) -> str:
    """A command that writes down what it is told."""
    return f'cat > {path}; echo "$EVOMERGE_STATE|$EVOMERGE_RUN|$EVOMERGE_SENTENCE" > {path}.env'


class PowerFailureError(Exception):
    pass


def fail_after_three(progress: Progress, record: TrialRecord | None) -> None:
    if progress.done == 3:
        raise PowerFailureError("no more power")


def test_a_web_hook_is_told_the_verdict(small: Small, hook: Hook) -> None:
    path = with_notify(small(trials=14), hook.url)
    checked = describe_check(check(path, probe=False))
    assert "notify   127.0.0.1 (POST), when the search ends or fails" in checked
    assert "secret" not in checked
    assert not hook.posted
    outcome = search(path)
    assert outcome.verdict is not None
    report = read_run(outcome.folder)
    winner, opponent = (
        report.by_number[n].name for n in (outcome.verdict.winner, outcome.verdict.opponent)
    )
    ((kind, told),) = hook.posted
    assert kind == "application/json"
    assert told.keys() == {"run", "state", "sentence", "winner", "points", "host"}
    assert told["run"] == str(outcome.folder.resolve())
    assert told["state"] == "finished"
    assert told["sentence"] == outcome.verdict.sentence(winner, opponent)
    assert told["winner"] == winner
    assert outcome.verdict.score is not None
    assert told["points"] == pytest.approx(100 * outcome.verdict.score)
    assert report.ended is not None
    assert report.ended.state == "finished"
    assert report.ended.because == told["sentence"]
    assert "secret" not in RunFolder(outcome.folder).log.read_text()


def test_a_failure_is_told_and_kept_until_the_next_start(small: Small, tmp_path: Path) -> None:
    path = with_notify(small(trials=5), to_file(tmp_path / "first.json"))
    with pytest.raises(PowerFailureError):
        search(path, on_progress=fail_after_three)
    folder = load_config(path).output()
    told = json.loads((tmp_path / "first.json").read_text())
    assert (told["state"], told["winner"], told["points"]) == ("failed", None, None)
    assert told["sentence"] == "PowerFailureError: no more power"
    environment = (tmp_path / "first.json.env").read_text()
    assert environment == f"failed|{folder.resolve()}|PowerFailureError: no more power\n"
    assert read_run(folder).state() == "failed: PowerFailureError: no more power"
    assert f"{folder}: failed: PowerFailureError: no more power, 3 complete" in describe_run(folder)

    # Another notification is no other configuration; while it runs, nothing has ended.
    path.write_text(path.read_text().replace("first.json", "again.json"))
    ends: list[object] = []
    outcome = search(path, on_progress=lambda p, r: ends.append(read_run(folder).ended))
    assert set(ends) == {None}
    assert read_run(outcome.folder).state() == "finished"
    assert json.loads((tmp_path / "again.json").read_text())["state"] == "finished"


def test_mistakes_before_the_search_are_not_told(small: Small, tmp_path: Path) -> None:
    path = with_notify(small(trials=3), to_file(tmp_path / "told"))
    path.write_text(path.read_text().replace("/models/dial", "/models/none"))
    with pytest.raises(UserError):
        search(path)
    assert not (tmp_path / "told").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_stops_and_only_the_users_own_is_not_told(
    small: Small, tmp_path: Path, number: signal.Signals
) -> None:
    path = with_notify(
        small("guide: none\nsampler: random\n", trials=4000), to_file(tmp_path / "told")
    )
    folder = load_config(path).output()
    process = subprocess.Popen(
        [sys.executable, "-m", "evomerge", "search", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list(folder.glob("search/*.npz"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    assert read_run(folder).state() == "running"
    process.send_signal(number)
    process.wait(60)
    told = tmp_path / "told"
    assert told.exists() is (number == signal.SIGTERM)
    if number == signal.SIGTERM:
        assert json.loads(told.read_text())["sentence"].startswith("stopped by SIGTERM")
    killed = "interrupted, the same command goes on"
    stopped = "stopped, the same command goes on"
    assert read_run(folder).state() == (killed if number == signal.SIGKILL else stopped)


def test_a_run_of_an_earlier_version_ended_where_it_has_a_verdict(small: Small) -> None:
    report = read_run(search(small(trials=3)).folder)
    study = find_study(RunFolder(report.folder).storage_of_run(None))
    assert study is not None
    from evomerge.searching.ending import ENDED, read_end

    before = {name: value for name, value in study.user_attrs.items() if name != ENDED}
    assert replace(report, ended=read_end(before, judged=True)).state() == "finished"
    killed = "interrupted, the same command goes on"
    assert replace(report, ended=read_end(before, judged=False)).state() == killed


def test_what_is_not_told_is_a_warning(hook: Hook, caplog: pytest.LogCaptureFixture) -> None:
    hook.answer = 503
    send(hook.url, NOTICE)
    assert "127.0.0.1 (POST) was not notified: it answered 503" in caplog.text
    assert hook.posted[0][1]["points"] == 61.0
    caplog.clear()
    send("http://127.0.0.1:9/secret", NOTICE)
    assert "127.0.0.1 (POST) was not notified: URLError" in caplog.text
    assert "secret" not in caplog.text
    caplog.clear()
    send("echo wrong address; exit 3", NOTICE)
    assert "was not notified: it ended with 3: wrong address" in caplog.text
    caplog.clear()
    send("true", replace(NOTICE, sentence="a\0b"))
    assert "was not notified: ValueError: embedded null byte" in caplog.text


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    command = f"(sleep 2; touch {tmp_path}/late) & sleep 60"
    start = time.monotonic()
    assert notify._run(command, NOTICE, seconds=0.2) == "it did not end within 0.2 s"
    assert time.monotonic() - start < 1.5
    time.sleep(2.2)
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize("target", ["", "ftp://example.org", "[a, b]", "3"])
def test_impossible_targets_are_refused(small: Small, target: str) -> None:
    with pytest.raises(UserError, match="expected an http:// or https:// URL, or a shell command"):
        load_config(small(f"notify: {target or repr('')}\n"))

"""Every address answers, every table is a CSV, and what is hostile is text."""

import csv
import io
import json
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from evomerge.dashboard.kept_page import write_report
from evomerge.dashboard.server import is_loopback
from evomerge.report import read_run
from tests.dashboard.conftest import HOSTILE, get

PLACES = [
    "/",
    "/run/night",
    "/run/night?state=complete&sort=points&order=up&name=trial",
    "/run/night?method=task_arithmetic&kept=yes&sort=task%20capital",
    "/run/night/trial/0",
    "/run/night/trial/1?against=2",
    "/run/night/trial/1?against=2&side=holdout&task=%3Ci%3Epast%3C/i%3E",
    "/run/night/compare?trials=1,2,night/0",
    "/compare?trials=night/0,night/1&side=holdout",
    "/compare?trials=night/dial,other/past",
    "/run/night/trial/1?against=other/past&task=capital",
]
TABLES = [
    "/runs.csv",
    "/run/night/trials.csv?state=complete",
    "/run/night/figures/scores.csv",
    "/run/night/trial/1/documents.csv?against=2&task=%3Ci%3Epast%3C/i%3E",
    "/compare.csv?trials=night/0,night/1",
    "/compare.csv?trials=night/dial,other/past",
    "/recipes.csv?trials=night/0,night/25",
    "/run/night/trial/1/scores.csv",
]


def status(address: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("place", PLACES)
def test_every_page_answers_and_shows_hostile_names_as_text(site: str, place: str) -> None:
    html = get(site + place)
    assert "evomerge</title>" in html
    assert "<img" not in html
    assert "<i>" not in html
    assert "http://" not in html.replace(site, "")
    assert "https://" not in html


@pytest.mark.parametrize("place", TABLES)
def test_every_table_is_a_csv(site: str, place: str) -> None:
    rows = list(csv.DictReader(io.StringIO(get(site + place))))
    assert rows
    assert all(None not in row for row in rows)


def test_figures_are_data(site: str, folder: Path) -> None:
    report = read_run(folder / "runs" / "night")
    scores = json.loads(get(f"{site}/run/night/figures/scores.json"))
    drawn = [point for series in scores["option"]["series"] for point in series["data"]]
    shown = {point[0] for point in drawn}
    assert shown == {
        r.number for r in report.records if r.value is not None or r.estimate is not None
    }
    own = next(r.number for r in report.records if r.baseline is None and r.value is not None)
    place = f"{site}/run/night/trial/{own}/figures/coefficients-weight.json"
    cells = json.loads(get(place))["option"]["series"][0]["data"]
    weights = [
        value
        for rule in report.by_number[own].recipe.rules
        for value in rule.parameters["weight"].values()  # type: ignore[union-attr]
        for _ in rule.layers or (0,)
    ]
    assert sorted(cell[2] for cell in cells) == sorted(round(value, 4) for value in weights)


def test_what_is_not_there_is_said(site: str) -> None:
    assert status(f"{site}/run/none") == 404
    assert status(f"{site}/run/night/trial/9999") == 404
    assert status(f"{site}/run/night/figures/none.json") == 404
    assert status(f"{site}/run/night?sort=none") == 400
    assert status(f"{site}/run/night?page=0") == 400
    assert status(f"{site}/compare?trials=night/1") == 400
    assert status(f"{site}/compare?trials=" + ",".join(f"night/{n}" for n in range(7))) == 400
    hostile = urllib.parse.quote(HOSTILE)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{site}/run/{hostile}")
    assert "<img" not in refused.value.read().decode()


def test_other_names_for_this_machine_are_refused(site: str) -> None:
    assert status(site, Host="elsewhere.example") == 400


def test_pages_change_nothing(site: str, folder: Path) -> None:
    run = folder / "runs" / "night"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for place in PLACES:
        get(site + place)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_optuna_dashboard_is_beside_and_cannot_write(site: str, folder: Path) -> None:
    with urllib.request.urlopen(f"{site}/run/night/optuna") as answer:
        address = f"{urllib.parse.urlsplit(answer.url).scheme}://" + str(
            urllib.parse.urlsplit(answer.url).netloc
        )
    studies = json.loads(get(f"{address}/api/studies"))["study_summaries"]
    assert [study["study_name"] for study in studies] == ["evomerge"]
    journal = (folder / "runs" / "night" / "study.journal").read_bytes()
    asked = urllib.request.Request(f"{address}/api/studies/0", method="DELETE")
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(asked)
    assert (folder / "runs" / "night" / "study.journal").read_bytes() == journal


def test_another_address_asks_for_a_token(folder: Path) -> None:
    words = ["dashboard", str(folder / "runs"), "--port", "0", "--host", "0.0.0.0"]
    command = [sys.executable, "-m", "evomerge", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            printed = server.stdout.readline().removeprefix("dashboard: ").strip()
            address = urllib.parse.urlsplit(printed)._replace(netloc="")
            port = urllib.parse.urlsplit(printed).port
            site = f"http://127.0.0.1:{port}"
            assert status(f"{site}/") == 401
            assert status(f"{site}/run/night") == 401
            assert status(f"{site}/runs.csv?token=wr%C3%B6ng") == 401
            token = urllib.parse.parse_qs(address.query)["token"][0]
            assert status(f"{site}/", Cookie=f"evomerge_token={token}") == 200
            opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            with opener.open(f"{site}/?token={token}") as answer:
                assert answer.status == 200
                assert "token" not in answer.url
            assert status(f"{site}/static/app.css") == 200
        finally:
            server.terminate()


def test_loopback_is_known() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("10.0.0.5")
    assert not is_loopback("example.org")


def test_the_report_is_one_file_that_needs_nothing(folder: Path, tmp_path: Path) -> None:
    run = folder / "runs" / "night"
    (page,) = write_report(run, tmp_path / "night.html")
    pieces = re.split(r"<script[^>]*>.*?</script>", page.read_text(), flags=re.DOTALL)
    html = "".join(pieces)
    assert len(pieces) > 5
    assert "<img" not in html
    assert "<i>" not in html
    assert 'src="' not in html
    assert "<link" not in html
    report = read_run(run)
    assert report.verdict is not None
    names = {record.number: record.name for record in report.records}
    sentence = report.verdict.lines(names)[1]
    assert sentence.split(":")[1] in html
    text, picture = write_report(run, tmp_path / "night.md", markdown=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    markdown = text.read_text()
    assert f"]({picture.name})" in markdown
    assert "<img" not in markdown.replace("\\<img", "")
    assert "| task |" in markdown

"""The frames of a run, their documentation, and `evomerge trials`."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from evomerge import read_run, search
from evomerge.cli import app
from evomerge.frames import SCORE_COLUMNS
from evomerge.report import RunReport
from evomerge.trial_table import Selection, table_of_trials
from tests.conftest import ROOT, small_run

Small = Callable[..., Path]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    """Of a search with gradient steps and candidates of two methods."""
    return small_run(tmp_path_factory.mktemp("search"), "task_arithmetic, slerp", 40)


def test_trials_have_errors_times_and_methods(report: RunReport) -> None:
    frame = report.trials()
    record = report.ranked[0]
    row = frame.loc[record.number]
    metric = next(m for m in record.metrics if m.task == "capital" and m.name == "acc,none")
    assert row["capital"] == metric.value
    assert row["capital error"] == metric.standard_error
    assert row["started"].to_pydatetime() == record.started
    assert row["seconds"] == pytest.approx(sum(record.seconds.values()))
    assert row["host"] == record.host
    assert {"passthrough", "slerp", "task_arithmetic"} <= set(frame["methods"])
    held = frame["capital holdout error"].dropna()
    assert set(held.index) == set(report.holdout)


def test_parameters_are_those_of_the_recipe(small: Small) -> None:
    report = read_run(search(small(trials=20, depth="layers")).folder)
    frame = report.parameters()
    assert list(frame.index) == [record.number for record in report.records]
    assert report.records[0].name == "base"
    assert frame.loc[0].isna().all()
    steps = [record for record in report.records if record.state == "step"]
    assert steps
    for record in steps:
        first = next(rule for rule in record.recipe.rules if rule.layers == (0,))
        weight = first.parameters["weight"]
        assert isinstance(weight, dict)
        assert frame["layers 0/weight/past"][record.number] == weight["past"]


def test_scores_are_all_that_was_scored(report: RunReport) -> None:
    frame = report.scores()
    assert tuple(frame.columns) == SCORE_COLUMNS
    searched = frame[frame["side"] == "search"]
    assert len(searched) == sum(len(record.metrics) for record in report.records)
    held = frame[(frame["side"] == "holdout") & (frame["metric"] == "acc,none")]
    expected = {number: scored["capital"].value for number, scored in report.holdout.items()}
    assert dict(zip(held["number"], held["value"], strict=True)) == expected


def documented(heading: str) -> set[str]:
    """Names in the first column of the table below a heading of NOTEBOOK.md."""
    text = (ROOT / "configs" / "NOTEBOOK.md").read_text(encoding="utf-8")
    section = text.split(f"\n## `{heading}", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def general(column: str) -> str:
    """As the documentation writes it."""
    column = re.sub(r"^(capital|past)(?= value$)", "OBJECTIVE", column)
    return re.sub(r"^(capital|past)\b", "TASK", column)


def test_every_column_is_documented_and_every_documented_column_is_there(
    report: RunReport, small: Small
) -> None:
    several = small("objectives: [capital, past]\n", trials=14, name="several")
    front = read_run(search(several).folder)
    made = {general(c) for each in (report, front) for c in each.trials().reset_index().columns}
    assert made == documented("trials()")
    assert set(report.scores().columns) == documented("scores()")
    coefficients = set(report.coefficients(report.ranked[0].number).columns)
    assert documented("coefficients(number)") <= coefficients


def trials(report: RunReport, *words: object) -> list[str]:
    given = ["trials", str(report.folder), *map(str, words)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_the_table_shows_the_best_first(report: RunReport, tmp_path: Path) -> None:
    lines = trials(report, "--limit", 5)
    assert lines[1].split() == ["trial", "state", "mean", "nats", *lines[1].split()[4:]]
    assert [line[3:].split("  ")[0] for line in lines[2:7]] == [r.name for r in report.ranked[:5]]
    assert lines[2].startswith("*")
    best = report.trials().loc[report.ranked[0].number]
    error = f"{100 * best['capital error']:4.1f}"
    assert f"{100 * best['capital']:.1f} ±{error}" in lines[2]
    assert lines[7].startswith("5 of 40 trials; mean in points")

    steps = trials(report, "--state", "step", "--sort", "number", "--ascending")
    numbers = [r.number for r in report.records if r.state == "step"]
    assert [int(line.split()[1]) for line in steps[1:-1]] == numbers[:20]
    assert all("~-" in line for line in steps[1:-1])

    csv, parquet = tmp_path / "out" / "trials.csv", tmp_path / "trials.parquet"
    trials(report, "--csv", csv, "--parquet", parquet, "--limit", 1, "--state", "step")
    written = pd.read_csv(csv, index_col="number")
    assert len(written) == len(report.records)
    assert written["value"].equals(report.trials()["value"])
    again = pd.read_parquet(parquet)
    assert list(again.columns) == list(written.columns)
    parameters = again.filter(like="parameter ").rename(columns=lambda name: name[10:])
    pd.testing.assert_frame_equal(parameters, report.parameters(), check_dtype=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sort", "secnds"), "unknown column 'secnds'; did you mean 'seconds'?"),
        (("--state", "complete,prund"), "unknown state 'prund'; did you mean 'pruned'?"),
        (("--csv", "{folder}/trials.csv/x"), "cannot be written"),
    ],
)
def test_what_cannot_be_shown_is_said(
    small: Small, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    folder = search(small(trials=3)).folder
    (tmp_path / "trials.csv").write_text("")
    given = [word.format(folder=tmp_path) for word in words]
    result = CliRunner().invoke(app, ["trials", str(folder), *given])
    assert result.exit_code == 1
    assert said in result.output


def test_a_narrow_terminal_leaves_columns_out_and_names_them(report: RunReport) -> None:
    for width in (40, 80, 100, 120):
        console = Console(width=width)
        with console.capture() as shown:
            table, words = table_of_trials(report, Selection(limit=3), width)
            console.print(table, words)
        assert max(cell_len(line) for line in shown.get().splitlines()) <= width
        assert "trial" in shown.get()
        assert ("methods" in str(words)) is (width < 120)
        assert "…" not in shown.get()

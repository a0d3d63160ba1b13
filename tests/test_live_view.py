"""What a search shows while it runs: the panel, plain lines, and `status --watch`."""

import io
import logging
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.live_view import ConsoleHandler, LiveView, shown
from evomerge.report import RunReport
from evomerge.searching.loop import Budget
from evomerge.searching.progress import Progress
from evomerge.watching import watch
from tests.conftest import small_run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    """Of a search with gradient steps."""
    return small_run(tmp_path_factory.mktemp("search"), "task_arithmetic", 16)


def progress_of(report: RunReport, budget: Budget) -> Progress:
    progress = Progress(budget=budget, goal=report.goal, devices=(torch.device("cpu"),))
    for record in report.records:
        progress.add(record)
    return progress


def panel(progress: Progress, width: int, title: str = "run.yaml") -> str:
    """As a terminal of that width shows it, without colours."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    view = LiveView(title)
    view(progress, None)
    with console.capture() as captured:
        console.print(view.render())
    return captured.get()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_panel_tells_how_the_search_is(report: RunReport, width: int) -> None:
    progress = progress_of(report, Budget(trials=32))
    lines = panel(progress, width).splitlines()
    assert {cell_len(line) for line in lines} == {width}
    text = "\n".join(lines)
    assert "16/32 trials" in text
    assert "trials/h" in text
    assert "GiB used here" in text
    best, baseline = progress.best, progress.best_baseline
    assert best is not None
    assert best.value is not None
    assert baseline is not None
    assert f"│ best     {report.goal.text(best.value, best.metrics)[:12]}" in text
    assert "│ baseline " in text
    said = " ".join(line.strip("│ ") for line in lines)
    assert f"({best.name}) baseline" in said  # broken between words, not cut off
    assert [record.number for record in progress.recent] == list(range(10, 16))
    for record in progress.recent:
        line = next(line for line in lines if line.startswith(f"│ {record.name[:7]}"))
        assert record.state[:6] in line
    assert "gradient steps" in text
    assert "baselines: base" in text
    assert "Ctrl-C ends after this trial" in text
    assert "plateau" not in text


def test_the_bar_shows_the_limit_that_comes_first(report: RunReport) -> None:
    documents = sum(record.scored for record in report.records)
    deadline = datetime.now() + timedelta(hours=8)
    many = Budget(trials=1000, documents=2 * documents, deadline=deadline)
    progress = progress_of(report, many)
    assert progress.spent()["16/1000 trials"] == 0.016
    assert f"{documents}/{2 * documents} documents" in panel(progress, 80)
    late = progress_of(report, Budget(deadline=deadline))
    assert "0:00:00 of 8:00:00" in panel(late, 80)
    assert "━" not in panel(progress_of(report, Budget()), 80)


def test_names_are_no_markup(report: RunReport) -> None:
    progress = progress_of(report, Budget(trials=32))
    progress.add(replace(report.records[1], baseline="[red]dial[/x]"))
    failed = replace(report.records[2], baseline=None, value=None, state="failed")
    progress.add(replace(failed, failure="[bold]no such tensor[/]"))
    text = panel(progress, 120, title="[dim]run[/dim].yaml")
    assert "[dim]run[/dim].yaml" in text
    assert text.count("[red]dial[/x]") >= 2
    assert "[bold]no such tensor[/]" in text


def test_before_the_first_trial_it_loads(report: RunReport) -> None:
    console = Console(width=40, file=io.StringIO())
    with console.capture() as captured:
        console.print(LiveView("run.yaml").render())
    assert "loading" in captured.get()
    assert "0/5 trials" in panel(Progress(budget=Budget(trials=5), goal=report.goal), 40)


def test_messages_stand_whole_above_the_panel(report: RunReport) -> None:
    file = io.StringIO()
    console = Console(width=40, file=file, force_terminal=True, color_system=None)
    logger = logging.Logger("evomerge.test")
    logger.addHandler(ConsoleHandler(console))
    view = LiveView("run.yaml")
    with Live(get_renderable=view.render, console=console, auto_refresh=False) as live:
        view(progress_of(report, Budget(trials=32)), None)
        live.refresh()
        logger.warning("[x] a message of forty-two characters: 123")
    frames = file.getvalue().split("╭")
    message = next(frame for frame in frames if "[x] a message of" in frame)
    printed = message.rsplit("\x1b[2K", 1)[1].replace("\r", "")
    assert printed == "[x] a message of forty-two characters: \n123\n"  # broken between words
    assert len(frames) == 4  # drawn, drawn anew below the message, and at the end


def test_without_a_terminal_there_are_plain_lines(report: RunReport) -> None:
    file = io.StringIO()
    progress = progress_of(report, Budget(trials=32))
    progress.add(replace(report.records[1], baseline="[red]dial[/x]"))
    # Told to take colours, a pipe still cannot be drawn on anew.
    with shown(Console(file=file, force_terminal=True, width=40), "run.yaml") as on_progress:
        on_progress(progress, None)
        assert not file.getvalue()
        for record in report.records[:3]:
            on_progress(progress, record)
        assert file.getvalue().count("\n") == 1
    first, last = file.getvalue().splitlines()
    assert first.startswith("trial 17/32 · best ")
    assert last.startswith("trial 17/32 · best ")


def test_a_run_is_watched_until_it_ends(report: RunReport) -> None:
    running = replace(report, running=True)
    further = replace(running, records=report.records[:-1])
    seen, waits = iter([running, running, further, report]), list[float]()
    file = io.StringIO()
    watch(lambda: next(seen), Console(file=file, width=500), 5.0, waits.append)
    assert waits == [5.0] * 3
    lines = [line for line in file.getvalue().splitlines() if line.startswith(str(report.folder))]
    assert [line.split(": ")[1].split(",")[0] for line in lines] == ["running"] * 2 + ["finished"]

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    file = io.StringIO()
    terminal = Console(file=file, force_terminal=True, width=500)
    watch(lambda: running, terminal, 5.0, stop)
    assert "\x1b[2J" in file.getvalue()


def test_status_takes_the_seconds_behind_watch(report: RunReport) -> None:
    for words in (["--watch"], ["--watch", "2"]):
        result = CliRunner().invoke(app, ["status", str(report.folder), *words])
        assert result.exit_code == 0, result.output
        assert result.output.count("finished") == 1

"""A run as one file to keep: an HTML page that needs nothing else, or Markdown with a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from evomerge.dashboard import galleries
from evomerge.dashboard.app import templates
from evomerge.dashboard.asked import Asked
from evomerge.dashboard.cells import now, number
from evomerge.dashboard.compare import Chosen
from evomerge.dashboard.depth import depth_of
from evomerge.dashboard.figure import Figure
from evomerge.dashboard.run_pages import told
from evomerge.dashboard.runs import Run
from evomerge.dashboard.snapshot import Snapshot
from evomerge.dashboard.trial_page import beside_of, held_rows
from evomerge.errors import UserError
from evomerge.files import write_text
from evomerge.run_picture import draw_run
from evomerge.searching.run_folder import RunFolder

_STATIC = Path(__file__).parent / "static"
_BEST = 20  # trials that the table of the best has


def write_report(
    folder: Path, out: Path | None = None, *, markdown: bool = False, storage: str | None = None
) -> list[Path]:
    """Writes the report of a run, and returns the files: OUT, and for Markdown a picture beside it.

    out: None: `report.html` or `report.md` in the run folder. storage: URL of the study, where it
    is not in the folder. UserError where the folder holds no run that began.
    """
    run = Run(folder.resolve().name, RunFolder(folder), storage)
    if storage is None and not run.folder.journal.exists():
        raise UserError(f"{folder}: holds no run; expected the output folder of a search")
    run.refresh()
    if run.problem is not None:
        raise UserError(f"{folder}: cannot be read: {run.problem}")
    if run.snapshot is None:
        raise UserError(f"{folder}: the search has not begun yet; let it finish a trial")
    path = out or folder / ("report.md" if markdown else "report.html")
    try:
        if not markdown:
            write_text(path, html(run, run.snapshot))
            return [path]
        picture = path.with_suffix(".png")
        draw_run(folder, picture, storage)
        write_text(path, as_markdown(run, run.snapshot, picture.name))
        return [path, picture]
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from error


def html(run: Run, snapshot: Snapshot) -> str:
    """The page, with its figures' data, style and scripts inside."""
    return (
        templates()
        .get_template("report.html")
        .render(
            title=run.name,
            made=now(),
            style=Markup((_STATIC / "app.css").read_text(encoding="utf-8")),
            scripts=[Markup(_script(name)) for name in ("echarts.min.js", "app.js")],
            figures=[_inside(f, run.name) for f in _figures(snapshot)],
            winner_figures=[_inside(f, run.name) for f in galleries.winner_figures(snapshot)],
            **_content(run, snapshot),
        )
    )


def _figures(snapshot: Snapshot) -> list[Figure]:
    importance = galleries.importance_of(snapshot)
    return [*galleries.run_figures(snapshot), *([] if importance is None else [importance])]


def _content(run: Run, snapshot: Snapshot) -> dict[str, Any]:
    """What both forms tell."""
    winner = snapshot.winner
    beside: list[Any] = []
    held: list[dict[str, Any]] = []
    yaml = None
    if winner is not None:
        record = snapshot.index.full(winner.number)
        chosen = Chosen(run=run, snapshot=snapshot, record=record)
        beside = beside_of(chosen)
        held = held_rows(snapshot, beside)
        yaml = record.recipe.to_yaml()
    best = Asked().filtered(snapshot.frame)
    return {
        **told(run, snapshot),
        "winner": winner,
        "beside": beside,
        "held": held,
        "yaml": yaml,
        "best": best.head(_BEST).to_dict("records"),
        "tasks": list(snapshot.tasks),
        "failures": [r for r in snapshot.report.records if r.failure],
    }


def _script(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8").replace("</script", "<\\/script")


def _inside(figure: Figure, name: str) -> tuple[Figure, Markup]:
    """The figure with its data as JSON that no text in it can break out of."""
    text = figure.to_json(name).decode()
    return figure, Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028"))


def as_markdown(run: Run, snapshot: Snapshot, picture: str) -> str:
    """The same in Markdown, with a picture instead of the figures."""
    content = _content(run, snapshot)
    tasks = content["tasks"]
    lines = [f"# {_cell(run.name)}", "", *_bold(content["verdict"]), ""]
    if content["plateau"]:
        lines += [content["plateau"], ""]
    lines += [f"- {name}: {_cell(text)}" for name, text in content["facts"]]
    lines += ["", f"![Scores, weights of the winner, holdout]({picture})", ""]
    if content["held"]:
        names = [_cell(record.name) for record in content["beside"]]
        rows = [
            [_cell(row["task"]), *(_score(cell) for cell in row["cells"])]
            for row in content["held"]
        ]
        lines += ["## On the holdout documents", "", *_table(["task", *names], rows), ""]
    if content["winner"] is not None:
        depth = depth_of(snapshot.index.full(content["winner"].number).recipe)
        lines += [f"## What {_cell(content['winner'].name)} took from whom", ""]
        for parameter in galleries.varying(depth):
            own = depth.cells[depth.cells["parameter"] == parameter]
            table = own.pivot_table(
                index=["source", "part"], columns="place", values="value", sort=False
            )
            places = [place for place in depth.places if place in table]
            rows = [
                [*map(_cell, names), *(number(v, 3) for v in row)]
                for names, row in zip(table.index, table[places].to_numpy(), strict=True)
            ]
            lines += [parameter, "", *_table(["source", "part", *places], rows), ""]
    rows = [
        [
            _cell(row["name"]),
            row["state"],
            _score((row["points"], row["error"])),
            *(number(row[f"task {task}"]) for task in tasks),
        ]
        for row in content["best"]
    ]
    head = ["trial", "state", "points", *map(_cell, tasks)]
    lines += ["## The best on the search documents", "", *_table(head, rows), ""]
    if content["failures"]:
        lines += ["## Failures", ""]
        lines += [f"- {_cell(r.name)}: {_cell(r.failure or '')}" for r in content["failures"]]
        lines.append("")
    return "\n".join(lines)


def _bold(lines: Sequence[str]) -> list[str]:
    if not lines:
        return ["No verdict yet."]
    return [f"**{_cell(lines[0])}**", "", *(_cell(line) + "  " for line in lines[1:])]


def _score(cell: tuple[float, float]) -> str:
    value, error = (number(each) for each in cell)
    return f"{value} ± {error}" if value and error else value


def _cell(text: str) -> str:
    """Text that stays text in a Markdown table."""
    kept = text.replace("\\", "\\\\")
    for sign in "|<>*_`[]#":
        kept = kept.replace(sign, f"\\{sign}")
    return " ".join(kept.split())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruled = [list(head), ["---"] * len(head), *map(list, rows)]
    return ["| " + " | ".join(row) + " |" for row in ruled]

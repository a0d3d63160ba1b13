"""The verbs on the command line: parses, calls, prints; nothing else."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evomerge.errors import EXIT_OF_MISTAKE
from evomerge.terminal import ERR, OUT, errors, messages, quiet

app = typer.Typer(
    help="Finds the best merge of fine-tuned language models overnight.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Config = Annotated[Path, typer.Argument(help="The search configuration, a YAML file.")]
Run = Annotated[Path, typer.Argument(help="The run folder of a search (its `output`).")]
Out = Annotated[Path, typer.Argument(help="The folder to write; it must not exist yet.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")]
Storage = Annotated[
    str | None, typer.Option(help="URL of the study, where it is not in the run folder.")
]
Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that the model folders bring along."),
]


AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code", help="Run Python code of task folders and scorers, as `allow_code: true`."
    ),
]
Device = Annotated[str, typer.Option(help="Where to merge: auto, cpu, or cuda:N.")]


AsAdapter = Annotated[
    int | None,
    typer.Option(
        "--as-adapter", min=1, metavar="RANK", help="Write a LoRA adapter of this rank on the base."
    ),
]


class SideName(StrEnum):
    """Which documents of the split."""

    search = "search"
    holdout = "holdout"


@app.command(epilog="Example: evomerge init models/base models/chat models/code > my.yaml")
def init(
    base: Annotated[
        str | None, typer.Argument(help="The base model: a folder, or an id on the hub.")
    ] = None,
    sources: Annotated[
        list[str] | None, typer.Argument(help="Its fine-tuned versions, likewise.")
    ] = None,
    from_mergekit_evolve: Annotated[
        Path | None, typer.Option(help="Make it of this configuration of mergekit-evolve instead.")
    ] = None,
) -> None:
    """Looks at models and prints a commented configuration for them."""
    with errors(), quiet():
        from evomerge.errors import UserError
        from evomerge.mergekit.evolve import from_evolve
        from evomerge.starter import starter_config

        if from_mergekit_evolve is not None:
            OUT.print(from_evolve(from_mergekit_evolve), markup=False, end="")
            return
        if base is None or not sources:
            raise UserError("expected a base model and at least one source, or a file to convert")
        OUT.print(starter_config(base, sources), markup=False, end="")


@app.command(epilog="Example: evomerge convert winner/recipe.yaml > mergekit.yml")
def convert(
    recipe: Annotated[Path, typer.Argument(help="A recipe.yaml, or a merge YAML of mergekit.")],
) -> None:
    """Prints a recipe as mergekit's YAML, or mergekit's YAML as a recipe."""
    with errors(), messages(), quiet():
        from evomerge.mergekit.reading import is_mergekit_file, read_recipe
        from evomerge.mergekit.writing import to_mergekit

        asked = read_recipe(recipe)
        text = asked.to_yaml() if is_mergekit_file(recipe) else to_mergekit(asked)
        OUT.print(text, markup=False, end="")


@app.command(epilog="Example: evomerge inspect models/base models/chat models/code")
def inspect(
    base: Annotated[str, typer.Argument(help="The base model: a folder, or an id on the hub.")],
    sources: Annotated[list[str], typer.Argument(help="Its fine-tuned versions, likewise.")],
    full: Annotated[bool, typer.Option("--full", help="A line per layer and part.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw heatmaps: .png, .svg, .pdf.")] = None,
    rank: Annotated[
        bool | None,
        typer.Option(help="Effective ranks of all matrices, or of none; by default if quick."),
    ] = None,
) -> None:
    """Are these models mergeable, and what to expect: norms, angles, conflicts."""
    with errors(), quiet():
        from evomerge.describe import describe_inspection
        from evomerge.inspection import inspect as run
        from evomerge.inspection import write_json
        from evomerge.inspection_picture import draw
        from evomerge.starter import source_names

        found = run(base, sources, source_names(sources), rank=rank)
        OUT.print(describe_inspection(found, full=full), markup=False)
        if json is not None:
            write_json(found, json)
        if picture is not None and not found.problems:
            draw(found, picture)
        if found.problems:
            raise typer.Exit(1)


@app.command(epilog="Example: evomerge check configs/quickstart.yaml")
def check(
    config: Config,
    probe: Annotated[
        bool,
        typer.Option(help="Also score the base, and time a candidate, on a few documents."),
    ] = True,
    allow_code: AllowCode = False,
) -> None:
    """Tells all that can be known before a search: models, groups, memory, forecast."""
    with errors(), quiet():
        from evomerge.config import load_config
        from evomerge.describe import describe_check
        from evomerge.verbs import check as run

        OUT.print(
            describe_check(run(load_config(config, allow_code=allow_code), probe=probe)),
            markup=False,
        )


@app.command(epilog="Example: evomerge search configs/quickstart.yaml")
def search(
    config: Config,
    trials: Annotated[int | None, typer.Option(min=1, help="Budget: finished trials.")] = None,
    documents: Annotated[
        int | None, typer.Option(min=1, help="Budget: documents scored for trials.")
    ] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="Budget: hours from now.")] = None,
    until: Annotated[str | None, typer.Option(help="Budget: clock time, such as 07:00.")] = None,
    fork: Annotated[
        bool,
        typer.Option("--fork", help="If the configuration has changed, start a run beside."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that score candidates; by default one per GPU."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Run the workers on this Ray cluster: auto, or HOST:PORT."),
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option(min=0, help="GPUs of each worker on Ray; 0: none.")
    ] = 1.0,
    allow_code: AllowCode = False,
) -> None:
    """Starts a search, or goes on with it; the options replace the file's budget."""
    with errors(), messages(), quiet():
        from evomerge.config import load_config, parse_budget
        from evomerge.describe import describe_outcome
        from evomerge.live_view import shown
        from evomerge.verbs import search as run

        budget = parse_budget(trials=trials, documents=documents, hours=hours, until=until)
        loaded = load_config(config, allow_code=allow_code)
        with shown(ERR, str(config)) as on_progress:
            outcome = run(
                loaded,
                budget=budget,
                fork=fork,
                workers=workers,
                ray=ray,
                gpus_per_worker=gpus_per_worker,
                on_progress=on_progress,
            )
        OUT.print(describe_outcome(outcome), markup=False)


@app.command(epilog="Example: evomerge worker postgresql+psycopg://me@db/night")
def worker(
    run: Annotated[
        str, typer.Argument(help="The run folder, shared by all workers, or the study's URL.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(help="This machine's version of the configuration, with its own paths."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Instead of the configuration's: auto, cpu, or cuda:N.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="How the log calls this worker.")] = None,
    beside: Annotated[
        int, typer.Option(min=1, help="Workers on this machine, which share its memory.")
    ] = 1,
    folder: Annotated[
        Path | None,
        typer.Option(help="For what this worker keeps, where it shares no run folder."),
    ] = None,
    with_parent: Annotated[
        bool, typer.Option("--with-parent", hidden=True, help="Die when standard input closes.")
    ] = False,
    allow_code: AllowCode = False,
    trust_remote_code: Trust = False,
) -> None:
    """Joins a search that runs here or on another machine, until its budget is spent."""
    with errors(EXIT_OF_MISTAKE), messages(), quiet():
        from evomerge.verbs import Here, work

        here = Here(
            label=label,
            device=device,
            beside=beside,
            folder=folder,
            allow_code=allow_code,
            trust_remote_code=trust_remote_code,
            with_parent=with_parent,
        )
        joined = work(run, here, config)
        OUT.print(f"{joined.label}: {joined.trials} trials", markup=False)


@app.command(epilog="Example: evomerge proxy postgresql+psycopg://me@db/night --host 0.0.0.0")
def proxy(
    storage: Annotated[
        str, typer.Argument(help="URL of a database, or a journal file, made if it is not there.")
    ],
    host: Annotated[
        str, typer.Option(help="Address to serve at. Whoever reaches it can change the study.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 13000,
) -> None:
    """Serves a study's storage to many workers, which name it as grpc://HOST:PORT."""
    with errors(), quiet():
        from evomerge.searching.storage import serve

        def ready(url: str) -> None:
            OUT.print(f"storage: {url}", markup=False)

        serve(storage, host, port, ready)


@app.command(epilog="Example: evomerge status results/quickstart --watch")
def status(
    run: Run,
    seconds: Annotated[float, typer.Argument(min=0.1, help="Between two looks of --watch.")] = 5,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every SECONDS until the run ends.")
    ] = False,
    storage: Storage = None,
    lm_eval: Annotated[
        int | None,
        typer.Option(help="Print the stock lm_eval commands that reproduce this trial's scores."),
    ] = None,
) -> None:
    """Tells how a search stands: trials, best, baselines, where the time went, the verdict."""
    with errors(), quiet():
        from evomerge.describe import describe_lm_eval, describe_run
        from evomerge.report import read_run
        from evomerge.watching import watch as look

        if watch:
            look(lambda: read_run(run, storage), OUT, seconds)
            return
        text = describe_run(run, storage) if lm_eval is None else describe_lm_eval(run, lm_eval)
        OUT.print(text, markup=False)


@app.command(epilog="Example: evomerge trials results/quickstart --csv trials.csv")
def trials(
    run: Run,
    storage: Storage = None,
    csv: Annotated[Path | None, typer.Option(help="Write all trials to this file.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Likewise, as Parquet.")] = None,
    sort: Annotated[
        str | None,
        typer.Option(help="By this column (configs/NOTEBOOK.md) instead of the best first."),
    ] = None,
    descending: Annotated[
        bool, typer.Option("--descending/--ascending", help="The highest first.")
    ] = True,
    limit: Annotated[int, typer.Option(min=1, help="Print at most so many.")] = 20,
    state: Annotated[
        str | None, typer.Option(help="Print only these, such as complete,pruned.")
    ] = None,
) -> None:
    """Lists the trials of a search, or writes all of them to a file."""
    with errors(), quiet():
        from evomerge.frames import whole_frame, write_frame
        from evomerge.report import read_run
        from evomerge.trial_table import Selection, read_states, table_of_trials

        report = read_run(run, storage)
        chosen = Selection(sort=sort, descending=descending, limit=limit, states=read_states(state))
        # A pipe has no width: there the table takes what it needs.
        wide = OUT if OUT.is_terminal else Console(highlight=False, width=1000)
        for part in table_of_trials(report, chosen, wide.width):
            wide.print(part, soft_wrap=False)
        for path in filter(None, (csv, parquet)):
            write_frame(whole_frame(report), path, parquet=path is parquet)
            OUT.print(f"wrote {path}", markup=False)


@app.command(epilog="Example: evomerge score winner --config configs/quickstart.yaml --on holdout")
def score(
    what: Annotated[Path, typer.Argument(help="A recipe.yaml, or a model folder.")],
    config: Annotated[Path, typer.Option(help="The configuration whose tasks are scored.")],
    on: Annotated[SideName, typer.Option(help="Documents of the split.")] = SideName.search,
    allow_code: AllowCode = False,
) -> None:
    """Scores a recipe or a model folder as a trial of the search would be scored."""
    with errors(), messages(), quiet():
        from evomerge.config import load_config
        from evomerge.describe import describe_scores
        from evomerge.verbs import score as run

        loaded = load_config(config, allow_code=allow_code)
        OUT.print(describe_scores(run(what, loaded, side=on.value)), markup=False)


@app.command(epilog="Example: evomerge merge winner/recipe.yaml merged")
def merge(
    recipe: Annotated[Path, typer.Argument(help="A recipe.yaml, or a merge YAML of mergekit.")],
    out: Out,
    as_adapter: AsAdapter = None,
    force: Force = False,
    device: Device = "auto",
    trust_remote_code: Trust = False,
    keep_between: Annotated[
        bool,
        typer.Option(
            "--keep-between",
            help="Of a mergekit file with several merges: leave all results, in OUT-between.",
        ),
    ] = False,
) -> None:
    """Makes the weights of a recipe and writes them as a checkpoint folder."""
    with errors(), messages(), quiet():
        from evomerge.mergekit.chain import is_chain, merge_chain
        from evomerge.mergekit.reading import read_recipe

        if is_chain(recipe) and as_adapter is None:
            folder = merge_chain(
                recipe,
                out,
                keep=keep_between,
                force=force,
                trust_remote_code=trust_remote_code,
                device=device,
            )
            OUT.print(f"wrote {folder}", markup=False)
            return
        asked = read_recipe(recipe)
        if as_adapter is not None:
            _write_adapter(asked, out, as_adapter, force, trust_remote_code)
            return
        from evomerge.exporting import merge as run

        folder = run(asked, out, force=force, device=device, trust_remote_code=trust_remote_code)
        OUT.print(f"wrote {folder}", markup=False)


@app.command(epilog="Example: evomerge export results/quickstart winner")
def export(
    run: Run,
    out: Out,
    trial: Annotated[int | None, typer.Option(help="This trial instead of the winner.")] = None,
    knee: Annotated[
        bool, typer.Option("--knee", help="With several objectives: the knee of the front.")
    ] = False,
    as_adapter: AsAdapter = None,
    force: Force = False,
    storage: Storage = None,
    device: Device = "auto",
    trust_remote_code: Trust = False,
) -> None:
    """Writes the winner of a search, or another trial, as a checkpoint folder."""
    with errors(), quiet():
        from evomerge.exporting import export as write
        from evomerge.exporting import recipe_of_run

        if as_adapter is not None:
            chosen = recipe_of_run(run, trial, storage, knee=knee)
            _write_adapter(chosen, out, as_adapter, force, trust_remote_code)
            return
        folder = write(
            run,
            out,
            trial=trial,
            knee=knee,
            force=force,
            storage=storage,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        OUT.print(f"wrote {folder}", markup=False)


def _write_adapter(recipe: Any, out: Path, rank: int, force: bool, trust: bool) -> None:
    from evomerge.adapting import merge_as_adapter

    done = merge_as_adapter(recipe, out, rank, force=force, trust_remote_code=trust)
    OUT.print(f"wrote {done.folder}: {done.sentence()}", markup=False)


@app.command(epilog="Example: evomerge plot results/quickstart quickstart.png")
def plot(
    run: Run,
    out: Annotated[Path, typer.Argument(help="The picture: .png, .svg or .pdf.")],
    storage: Storage = None,
) -> None:
    """Draws a run: score over trials, the winner's coefficients, the holdout table."""
    with errors(), quiet():
        from evomerge.run_picture import draw_run

        draw_run(run, out, storage)
        OUT.print(f"wrote {out}", markup=False)


@app.command(epilog="Example: evomerge dashboard results")
def dashboard(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders with runs; results/.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to serve at; other than loopback asks for a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8765,
    storage: Storage = None,
) -> None:
    """Shows runs in a browser: compares trials, follows searches that run; changes nothing."""
    with errors():
        from evomerge.dashboard.server import serve

        serve(
            runs or [Path("results")],
            host=host,
            port=port,
            storage=storage,
            announce=lambda address: OUT.print(f"dashboard: {address}", markup=False),
        )


@app.command(epilog="Example: evomerge report results/quickstart quickstart.html")
def report(
    run: Run,
    out: Annotated[
        Path | None, typer.Argument(help="The file; by default report.html in the run folder.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Markdown, and a picture beside it.")
    ] = False,
    storage: Storage = None,
) -> None:
    """Writes one file to keep or to send: verdict, figures and tables of a run."""
    with errors(), quiet():
        from evomerge.dashboard.kept_page import write_report

        for path in write_report(run, out, markdown=markdown, storage=storage):
            OUT.print(f"wrote {path}", markup=False)

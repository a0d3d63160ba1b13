"""The web application: addresses, and what answers them."""

import asyncio
import hmac
import io
import logging
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from evomerge.dashboard import compare_page, galleries, run_pages, trial_page
from evomerge.dashboard.asked import Asked, choose, ready, side_of
from evomerge.dashboard.cells import FILTERS
from evomerge.dashboard.compare import Chosen
from evomerge.dashboard.depth import depth_of
from evomerge.dashboard.figure import Figure
from evomerge.dashboard.runs import Run, Runs
from evomerge.dashboard.snapshot import Snapshot
from evomerge.errors import UserError

log = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_COOKIE = "evomerge_token"
_SECONDS = 1.0  # between looks whether a run has changed
_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)

_OF_DAMAGED_RUNS: tuple[type[Exception], ...] = (
    *(TypeError, ValueError, AttributeError, IndexError, ArithmeticError, AssertionError),
    *(RecursionError, MemoryError, OSError, TemplateError),
)
"""What comes of values in a run's files that are not what this version writes."""

StartOptuna = Callable[[Run], str]
"""Starts optuna-dashboard on a run's study, once, and returns its address."""


def templates() -> Environment:
    """The pages' templates; all that is put into them is escaped."""
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment


def make_app(
    runs: Runs,
    *,
    start_optuna: StartOptuna,
    token: str | None = None,
    hosts: Sequence[str] = ("127.0.0.1", "localhost", "[::1]", "testserver"),
) -> Starlette:
    """hosts: names under which it may be asked for; others are refused, so that no other site's
    page can read the runs through a name that points here. token: None asks for none."""
    site = _Site(runs, start_optuna)
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)),
        Middleware(GZipMiddleware, minimum_size=1000, compresslevel=1),
    ]
    if token is not None:
        middleware.append(Middleware(_TokenGate, token=token, page=site.login))
    return Starlette(
        routes=[
            Route("/", site.runs),
            Route("/runs.csv", site.runs_csv),
            Route("/run/{run}", site.run),
            Route("/run/{run}/trials.csv", site.trials_csv),
            Route("/run/{run}/figures/{name}.{kind}", site.run_figure),
            Route("/run/{run}/trial/{number:int}", site.trial),
            Route("/run/{run}/trial/{number:int}/recipe.yaml", site.recipe),
            Route("/run/{run}/trial/{number:int}/scores.csv", site.scores_csv),
            Route("/run/{run}/trial/{number:int}/figures/{name}.{kind}", site.trial_figure),
            Route("/run/{run}/trial/{number:int}/documents.csv", site.documents_csv),
            Route("/run/{run}/compare", site.compare),
            Route("/run/{run}/optuna", site.optuna),
            Route("/compare", site.compare),
            Route("/compare.csv", site.compare_csv),
            Route("/recipes.csv", site.recipes_csv),
            Route("/compare/figures/{name}.{kind}", site.compare_figure),
            Route("/events", site.events),
            Mount("/static", StaticFiles(directory=_HERE / "static")),
        ],
        middleware=middleware,
        exception_handlers={
            UserError: site.refused,
            UnicodeDecodeError: site.refused,
            KeyError: site.missing,
            **dict.fromkeys(_OF_DAMAGED_RUNS, site.unshowable),
            HTTPException: site.failed,
            Exception: site.broken,
        },
    )


class _Site:
    """What answers the addresses."""

    def __init__(self, runs: Runs, start_optuna: StartOptuna) -> None:
        self._runs = runs
        self._start_optuna = start_optuna
        self._templates = templates()
        self._importance: dict[str, tuple[int, Figure | None]] = {}
        self._computing = threading.Lock()
        self._compare_kept: tuple[Any, list[Figure]] = (), []

    def runs(self, request: Request) -> Response:
        return self._page("runs.html", request, **run_pages.runs_page(self._runs))

    def runs_csv(self, request: Request) -> Response:
        return _csv(run_pages.runs_table(self._runs), "runs")

    def run(self, request: Request) -> Response:
        run = self._run(request)
        if run.snapshot is None:
            return self._page("waiting.html", request, run=run, title=run.name)
        asked = Asked.of(request.query_params)
        return self._page("run.html", request, **run_pages.run_page(run, run.snapshot, asked))

    def trials_csv(self, request: Request) -> Response:
        run, snapshot = self._snapshot(request)
        asked = Asked.of(request.query_params)
        return _csv(asked.filtered(snapshot.frame), f"{run.name}-trials")

    def run_figure(self, request: Request) -> Response:
        run, snapshot = self._snapshot(request)
        name = request.path_params["name"]
        if name == "importance":
            found = self._importance_of(run, snapshot)
            if found is None:
                return Response(status_code=204)
            return _figure(found, request, run.name)
        figures = galleries.run_figures(snapshot)
        return _figure(galleries.named(figures, name), request, run.name)

    def _importance_of(self, run: Run, snapshot: Snapshot) -> Figure | None:
        """Kept until a tenth more trials are there."""
        with self._computing:
            known = self._importance.get(run.name)
            if known is None or snapshot.trials > 1.1 * known[0]:
                figure = galleries.importance_of(snapshot)
                known = self._importance[run.name] = (snapshot.trials, figure)
            return known[1]

    def trial(self, request: Request) -> Response:
        chosen = self._chosen(request)
        query = request.query_params
        against = query.get("against")
        other = None if not against else choose(self._runs, [against], chosen.run.name)[0]
        return self._page("trial.html", request, **trial_page.trial_page(chosen, other, query))

    def documents_csv(self, request: Request) -> Response:
        chosen = self._chosen(request)
        query = request.query_params
        other = choose(self._runs, [query["against"]], chosen.run.name)[0]
        table = trial_page.flipped(other, chosen, side_of(query), query.get("task"))
        return _csv(table, f"{chosen.run.name}-documents-{chosen.record.number}")

    def scores_csv(self, request: Request) -> Response:
        chosen = self._chosen(request)
        name = f"{chosen.run.name}-scores-{chosen.record.number}"
        return _csv(trial_page.scores_table(chosen), name)

    def recipe(self, request: Request) -> Response:
        text = self._chosen(request).record.recipe.to_yaml()
        return Response(text, media_type="text/yaml; charset=utf-8")

    def trial_figure(self, request: Request) -> Response:
        chosen = self._chosen(request)
        figures = galleries.trial_figures(depth_of(chosen.record.recipe))
        name = f"{chosen.run.name}-trial-{chosen.record.number}"
        return _figure(galleries.named(figures, request.path_params["name"]), request, name)

    def compare(self, request: Request) -> Response:
        chosen = self._compared(request)
        side = side_of(request.query_params)
        content = compare_page.compare_page(chosen, side, self._compare_figures(chosen))
        return self._page("compare.html", request, **content)

    def compare_csv(self, request: Request) -> Response:
        chosen = self._compared(request)
        side = side_of(request.query_params)
        return _csv(compare_page.compare_table(chosen, side), "compare")

    def recipes_csv(self, request: Request) -> Response:
        return _csv(compare_page.recipes_table(self._compared(request)), "recipes")

    def compare_figure(self, request: Request) -> Response:
        figures = self._compare_figures(self._compared(request))
        return _figure(galleries.named(figures, request.path_params["name"]), request, "compare")

    def _compare_figures(self, chosen: list[Chosen]) -> list[Figure]:
        """Those of the last comparison are kept: a page asks for them one by one."""
        key = tuple((each.key, each.snapshot.revision) for each in chosen)
        if self._compare_kept[0] != key:
            self._compare_kept = key, compare_page.compare_figures(chosen)
        return self._compare_kept[1]

    def optuna(self, request: Request) -> Response:
        return RedirectResponse(self._start_optuna(self._run(request)), status_code=303)

    async def events(self, request: Request) -> Response:
        """Server-sent events: one whenever a run of the page has changed."""
        names = request.query_params.getlist("run")
        runs = self._runs

        def state() -> str:
            shown = [run for run in runs if not names or run.name in names]
            return " ".join(f"{run.name}:{run.revision}:{run.read:.2f}" for run in shown)

        async def stream() -> AsyncIterator[str]:
            last = state()
            yield f"data: {orjson.dumps(last).decode()}\n\n"
            while not await request.is_disconnected():
                await asyncio.sleep(_SECONDS)
                now = state()
                yield f"data: {orjson.dumps(now).decode()}\n\n" if now != last else ": still\n\n"
                last = now

        return StreamingResponse(stream(), media_type="text/event-stream")

    def refused(self, request: Request, error: Exception) -> Response:
        return self._error(request, 400, str(error))

    def missing(self, request: Request, error: Exception) -> Response:
        return self._error(request, 404, str(error.args[0]) if error.args else "not there")

    def unshowable(self, request: Request, error: Exception) -> Response:
        """What a run says cannot be shown; the terminal has the traceback."""
        log.warning("%s cannot be shown", request.scope["path"], exc_info=error)
        text = f"{type(error).__name__}: {error}"
        return self._error(
            request,
            422,
            f"this cannot be shown ({text[:500]}): the run's files are damaged or of another "
            "version, or evomerge has a mistake; the terminal says more",
        )

    def failed(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return self._error(request, error.status_code, error.detail)

    def broken(self, request: Request, error: Exception) -> Response:
        """An error of the program's: its traceback is on the terminal, for starlette raises it."""
        return self._error(request, 500, f"{type(error).__name__}: {error}")

    def login(self, request: Request, wrong: bool) -> Response:
        return self._page("login.html", request, 401, title="Token", wrong=wrong)

    def _error(self, request: Request, status: int, text: str) -> Response:
        return self._page("error.html", request, status, title="Not shown", text=text)

    def _page(self, name: str, request: Request, status: int = 200, **content: Any) -> Response:
        html = self._templates.get_template(name).render(
            path=request.scope["path"], query=_query(request), **content
        )
        headers = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "same-origin"}
        return HTMLResponse(html, status_code=status, headers=headers)

    def _run(self, request: Request) -> Run:
        return self._runs[request.path_params["run"]]

    def _snapshot(self, request: Request) -> tuple[Run, Snapshot]:
        run = self._run(request)
        return run, ready(run)

    def _chosen(self, request: Request) -> Chosen:
        name = request.path_params["run"]
        return choose(self._runs, [str(request.path_params["number"])], name)[0]

    def _compared(self, request: Request) -> list[Chosen]:
        words = [w for w in request.query_params.get("trials", "").split(",") if w.strip()]
        words += request.query_params.getlist("trial")
        return choose(self._runs, words, request.path_params.get("run"))


class _TokenGate:
    """Lets nobody in who does not have the token."""

    def __init__(self, app: ASGIApp, token: str, page: Callable[[Request, bool], Response]) -> None:
        self._app = app
        self._token = token
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/static/"):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        given = request.query_params.get("token") if _query(request) else None
        shown = given or request.cookies.get(_COOKIE, "")
        if hmac.compare_digest(shown.encode(), self._token.encode()):
            if given is None:
                await self._app(scope, receive, send)
                return
            # Not in the address: addresses are passed on.
            response: Response = RedirectResponse(request.url.remove_query_params("token"), 303)
            response.set_cookie(_COOKIE, self._token, httponly=True, samesite="strict")
        else:
            response = self._page(request, given is not None)
        await response(scope, receive, send)


def _query(request: Request) -> str:
    """As it may stand in an address; nothing of one that is no text."""
    try:
        return str(request.query_params)
    except ValueError:
        return ""


def new_token() -> str:
    """Hard to guess."""
    return secrets.token_urlsafe(18)


def _figure(figure: Figure, request: Request, name: str) -> Response:
    if request.path_params["kind"] == "csv":
        return _csv(figure.table, f"{name}-{figure.name}")
    return Response(figure.to_json(name), media_type="application/json")


def _csv(table: pd.DataFrame, name: str) -> Response:
    buffer = io.StringIO()
    table.to_csv(buffer, index=False)
    header = f"attachment; filename*=UTF-8''{quote(name)}.csv"
    return Response(
        buffer.getvalue(),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": header},
    )

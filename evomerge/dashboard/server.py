"""Starts the web application, and optuna-dashboard beside it where it is asked for."""

import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import uvicorn
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from evomerge.dashboard.app import make_app, new_token
from evomerge.dashboard.runs import Run, Runs
from evomerge.errors import UserError
from evomerge.searching.run_folder import STUDY

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"


def serve(
    roots: Sequence[Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    storage: str | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Serves the pages of the runs below some folders until it is interrupted.

    host: an address; other than loopback, a token is asked for. storage: URL of the study of a
    single run. announce: told where the pages are. UserError where the port is taken.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    local = is_loopback(host)
    token = None if local else new_token()
    runs = Runs(roots, storage)
    beside = OptunaDashboards(local=local)
    hosts = ["127.0.0.1", "localhost", "[::1]"] if local else ["*"]
    app = make_app(runs, start_optuna=beside.start, token=token, hosts=hosts)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = socket.socket(family)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((host, port))
        place.listen()  # who asks early waits
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be used ({error}); give another --port") from error
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{place.getsockname()[1]}/"
    announce(address if token is None else f"{address}?token={token}")
    runs.start()
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    try:
        uvicorn.Server(config).run(sockets=[place])
    finally:
        runs.stop()
        beside.stop()


def is_loopback(host: str) -> bool:
    """Whether only this machine can ask there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ReadOnlyJournal(BaseJournalBackend):
    """A journal that is read, and refuses every change."""

    def __init__(self, path: Path) -> None:
        self._file = JournalFileBackend(str(path))

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """The entries from this number on."""
        return self._file.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """PermissionError: pages change nothing."""
        raise PermissionError("the dashboard only reads the runs")


class OptunaDashboards:
    """optuna-dashboard, started once for each run that asks for it."""

    def __init__(self, *, local: bool) -> None:
        """local: whether only this machine may ask for the pages."""
        self._local = local
        self._servers: dict[str, tuple[WSGIServer, int]] = {}
        """Run -> its server, and the number of its study there."""
        self._lock = threading.Lock()

    def start(self, run: Run) -> str:
        """The address of the study's page; UserError where others than this machine could ask, for
        optuna-dashboard has no token."""
        if not self._local:
            raise UserError(
                "optuna-dashboard has no token, so it is not started for other machines; "
                f"on a machine of your own: optuna-dashboard {run.folder.journal}"
            )
        with self._lock:
            if run.name not in self._servers:
                self._servers[run.name] = self._serve(run)
            server, study = self._servers[run.name]
            return f"http://{_LOOPBACK}:{server.server_port}/dashboard/studies/{study}"

    def stop(self) -> None:
        """Ends all of them."""
        for server, _ in self._servers.values():
            server.shutdown()
            server.server_close()

    def _serve(self, run: Run) -> tuple[WSGIServer, int]:
        import optuna_dashboard

        storage: BaseStorage
        if run.storage is None:
            storage = JournalStorage(ReadOnlyJournal(run.folder.journal))
        else:
            storage = run.folder.storage_of_run(run.storage)
        app = optuna_dashboard.wsgi(storage)
        server = make_server(_LOOPBACK, 0, app, handler_class=_Quiet)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        log.info("optuna-dashboard of %s at port %d", run.name, server.server_port)
        return server, storage.get_study_id_from_name(STUDY)


class _Quiet(WSGIRequestHandler):
    """Writes no line per request."""

    def log_message(self, *_: Any) -> None:
        """Nothing."""

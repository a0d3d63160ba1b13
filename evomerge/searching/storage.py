"""Storages of a study outside of its run folder: a database, or Optuna's gRPC proxy before one."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage

from evomerge.errors import UserError
from evomerge.searching.journal import RunJournal, StudyStorage
from evomerge.searching.patience import is_passing, patiently

PASSWORD = ":***"
"""What stands for a password where a URL is shown or kept."""

_LOST = ("OperationalError", "InterfaceError", "PendingRollbackError")
"""Errors of SQLAlchemy that say that the database cannot be reached, is busy, or was lost amid
something else."""


def storage_of(url: str) -> BaseStorage:
    """A storage that waits where it cannot be reached for a while.

    url: `postgresql+psycopg://user@host/database`, any other of SQLAlchemy's, or `grpc://host:port`
    of a proxy. UserError where it cannot be reached at the start.
    """
    parts = urlsplit(url)
    try:
        if parts.scheme == "grpc":
            storage = _proxied(parts.hostname or "localhost", parts.port or 13000)
        else:
            # Connections that died with a restarted server are noticed before they are used.
            storage = _CachedStorage(RDBStorage(url, engine_kwargs={"pool_pre_ping": True}))
        storage.get_all_studies()
    except Exception as error:
        raise UserError(f"storage {without_password(url)}: cannot be opened: {error}") from error
    for name in sorted(BaseStorage.__abstractmethods__):
        setattr(storage, name, _patient(getattr(storage, name), without_password(url)))
    return storage


def close_storage(storage: BaseStorage) -> None:
    """Closes its connections; where it is used again, it makes new ones."""
    backend = getattr(storage, "_backend", storage)
    if isinstance(backend, RDBStorage):
        backend.remove_session()
        backend.engine.dispose()


def serve(what: str, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves a database, or a journal file, to workers that name it as `grpc://host:port`; returns
    never. There is no password: whoever reaches the port can change the study.

    what: a URL, or the path of a file, which is made if it is not there. ready: told the URL.
    """
    _need_grpc()
    storage = storage_of(what) if "://" in what else StudyStorage(RunJournal(Path(what)))
    with _experimental():
        ready(f"grpc://{host}:{port}")
        optuna.storages.run_grpc_proxy_server(storage, host=host, port=port)


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return url.replace(f":{parts.password}@", f"{PASSWORD}@")


def _proxied(host: str, port: int) -> BaseStorage:
    _need_grpc()
    with _experimental():
        storage = optuna.storages.GrpcStorageProxy(host=host, port=port)
    storage.wait_server_ready(timeout=30)
    return storage


def _need_grpc() -> None:
    try:
        import grpc  # noqa: F401
    except ImportError:
        raise UserError("a gRPC storage needs grpcio: pip install 'evomerge[grpc]'") from None


@contextmanager
def _experimental() -> Iterator[None]:
    """Optuna calls its proxy experimental since 4.2; the pinned version settles that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _patient(method: Callable[..., Any], where: str) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return patiently(f"the storage {where}", lambda: method(*args, **kwargs), _passes)

    return call


def _passes(error: BaseException) -> bool:
    chain: BaseException | None = error
    while chain is not None:
        if type(chain).__name__ in _LOST or is_passing(chain) or _proxy_is_gone(chain):
            return True
        chain = chain.__cause__
    return False


def _proxy_is_gone(error: BaseException) -> bool:
    """Whether gRPC's error says that the proxy cannot be reached, or that its database cannot."""
    code = getattr(error, "code", None)
    if not callable(code):
        return False
    name = getattr(code(), "name", "")
    details = str(getattr(error, "details", str)())
    return name == "UNAVAILABLE" or (name == "UNKNOWN" and any(each in details for each in _LOST))

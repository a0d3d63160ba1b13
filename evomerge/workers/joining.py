"""A worker that joins a run: from a folder that it shares, or from the URL of a database."""

import dataclasses
import hashlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage

from evomerge.assemble import prepare
from evomerge.beginning import begin
from evomerge.checking import budget_of
from evomerge.checkpoints.hashes import HashCache
from evomerge.config import LoadedConfig, SearchConfig, load_config
from evomerge.ending import until_end
from evomerge.errors import UserError
from evomerge.files import cache_folder, write_text
from evomerge.going_on import read_starts
from evomerge.identity import identity
from evomerge.run_log import logging_to
from evomerge.searching.ending import read_end
from evomerge.searching.interrupt import on_interrupt
from evomerge.searching.loop import Budget
from evomerge.searching.record import TrialRecord
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.storage import PASSWORD, without_password
from evomerge.searching.study import CONFIG, HISTORY, find_study, open_study
from evomerge.session import Follower, Session, budget_of_run, session
from evomerge.typed_yaml import read_yaml
from evomerge.working import conclude, make_loop, share_finalists

log = logging.getLogger(__name__)

STORAGE = "EVOMERGE_STORAGE"
"""Environment variable with the URL of the study, for one with a password, which no file keeps."""

_PAUSE = 1.0  # seconds between looks whether the run has begun


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What a worker did."""

    folder: Path
    label: str
    trials: int
    """That it ran itself."""
    stopped: bool
    led: bool
    """Whether it led at the end, and gave the verdict."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What is said of this worker and this machine."""

    label: str | None = None
    """How the log calls it."""
    device: str | None = None
    """Instead of the configuration's."""
    beside: int = 1
    """Workers on this machine, which share its memory and its processors."""
    folder: Path | None = None
    """For what the worker keeps, where it shares no run folder."""
    allow_code: bool = False
    trust_remote_code: bool = False
    with_parent: bool = False
    """Whether the process that started it holds its standard input: it dies with that process."""


def work(run: Path | str, here: Here, config: Path | None = None) -> Joined:
    """Takes part in a run until its budget is spent; leads it where nobody else does.

    run: the run folder, on a file system that all workers share, or the URL of its storage.
    config: this machine's version of the configuration, with its own paths; else that of the run,
    whose models and documents are then expected at the same paths. Begins the run where that was
    not done, if a configuration is given. UserError where models, documents or anything else that
    scores depend on are not those of the run.
    """
    if here.with_parent:
        _die_with_parent()
    label = here.label or f"worker on {os.uname().nodename}"
    url = str(run) if "://" in str(run) else None
    folder = RunFolder(_own_folder(url, here) if url else Path(run))
    folder.make()
    given = None if config is None else load_config(config, allow_code=here.allow_code)
    url = url or _recorded_storage(folder) or (given.config.storage if given else None)
    storage = folder.storage(url)
    study = _wait_for_study(storage, folder, url, given)
    loaded = _here(given or _recorded(study, folder, here), here)
    with logging_to(folder, label):
        hashes = HashCache(folder.path / "hashes.json")
        bench = prepare(loaded, hashes, workers=here.beside)
        hashes.save()
        study = open_study(storage, identity(bench), bench.goal.parts)
        starts = partial(read_starts, bench, study)
        with session(bench, study, folder, _budget(study, loaded), url, label) as own:
            try:
                return _take_part(own, starts, label)
            finally:
                folder.close()


def _budget(study: optuna.Study, loaded: LoadedConfig) -> Budget:
    """That of the run's last start; the configuration's where there was none, or where its time
    was over before the run was finished."""
    own = budget_of(loaded.config.budget)
    if HISTORY not in study.user_attrs:
        return own
    known = budget_of_run(study)
    end = read_end(study.user_attrs, judged=False)
    over = known.deadline is not None and known.deadline <= datetime.now()
    return own if over and (end is None or end.state != "finished") else known


def _take_part(own: Session, starts: Callable[[], Any], label: str) -> Joined:
    if own.presence.leads():
        begin(own, starts(), 1)
    while HISTORY not in own.study.user_attrs:
        time.sleep(_PAUSE)
    count = 0
    follower: Follower | None = None

    def on_trial(record: TrialRecord) -> None:
        nonlocal count, follower
        count += record.worker == own.presence.name
        if follower is not None:
            follower(record)
        elif own.presence.leads():
            follower = _follow(own)

    loop = make_loop(own, on_trial)
    with on_interrupt(loop.stop):
        loop.run()
        share_finalists(own, loop)
        leads = not loop.stop_asked and own.presence.leads()
        if leads:
            keep_plateau = (follower or _follow(own)).keep_plateau
            end = partial(conclude, own, loop, keep_plateau)
            until_end(own.study, own.folder, own.bench.loaded.config.notify, end)
    return Joined(
        folder=own.folder.path, label=label, trials=count, stopped=loop.stop_asked, led=leads
    )


def _follow(own: Session) -> Follower:
    return Follower(own, lambda progress, record: None)


def _die_with_parent() -> None:
    """At once, whatever the process is at: whoever takes over must find the device free."""

    def watch() -> None:
        while os.read(0, 1):  # not by sys.stdin, whose lock would outlive the main thread
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _own_folder(url: str, here: Here) -> Path:
    key = hashlib.sha256(url.encode()).hexdigest()[:12]
    return here.folder or cache_folder("workers") / f"{os.uname().nodename}-{os.getpid()}-{key}"


def _recorded_storage(folder: RunFolder) -> str | None:
    """The URL of the environment, or in the run folder's copy of the configuration; None where
    there is none."""
    if STORAGE in os.environ:
        return os.environ[STORAGE]
    if not folder.config.exists():
        return None
    url = read_yaml(folder.config, SearchConfig).storage
    if url is not None and PASSWORD in url:
        raise UserError(
            f"{folder.config}: storage: the password is not kept; give the whole URL in "
            f"{STORAGE}, or let the database's client find it (PostgreSQL: ~/.pgpass)"
        )
    return url


def _wait_for_study(
    storage: BaseStorage, folder: RunFolder, url: str | None, given: LoadedConfig | None
) -> optuna.Study | None:
    """The study, once its configuration is there; None: there is none, and one is given."""
    said = False
    while True:
        study = find_study(storage)
        if study is not None and CONFIG in study.user_attrs:
            return study
        if given is not None:
            return study
        where = folder.path if url is None else without_password(url)
        if url is None and not folder.locked():
            raise UserError(
                f"{where}: holds no run; start one with `evomerge search`, or give the worker a "
                "configuration with --config"
            )
        if not said:
            log.warning("%s: waits for the run to begin", where)
            said = True
        time.sleep(_PAUSE)


def _recorded(study: optuna.Study | None, folder: RunFolder, here: Here) -> LoadedConfig:
    """The run's configuration; relative paths start where they started when it began.

    Whoever can write to the study must not make this machine run code: what does so, this worker's
    own flags say, and nobody is notified.
    """
    assert study is not None
    kept = study.user_attrs[CONFIG]
    if not folder.config.exists():
        write_text(folder.config, kept["text"])
    place = Path(kept["folder"])
    if not place.is_dir():
        raise UserError(
            f"the run's configuration names paths from {place}, which is not there; give this "
            "machine's version with --config"
        )
    loaded = load_config(folder.config, place=place)
    config = dataclasses.replace(
        loaded.config,
        allow_code=here.allow_code,
        trust_remote_code=here.trust_remote_code,
        notify=None,
    )
    return dataclasses.replace(loaded, config=config)


def _here(loaded: LoadedConfig, here: Here) -> LoadedConfig:
    """With what differs on this machine."""
    config = loaded.config
    if here.device is not None:
        config = dataclasses.replace(config, device=here.device)
    if config.threads is None and here.beside > 1:
        threads = max(1, len(os.sched_getaffinity(0)) // here.beside)
        config = dataclasses.replace(config, threads=threads)
    return dataclasses.replace(loaded, config=config)

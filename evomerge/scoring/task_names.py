"""Which names lm-eval's own tasks, groups and tags have, without reading all of its files again.

lm-eval reads some 14,000 YAML files to learn where each name is defined. What it found is kept in
the user's cache, for as long as none of those files changes.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind

from evomerge.files import cache_folder, write_text

_LOG = logging.getLogger(__name__)
_FORMAT = 1


def built_in_tasks() -> TaskManager:
    """lm-eval's TaskManager that knows the tasks that come with it.

    Its entries have no `cfg`, which lm-eval does not read where there is a YAML file.
    """
    root = Path(lm_eval.tasks.__file__).parent
    path = cache_folder("requests") / f"names-{_stamp(root)}.json"
    index = _read(path, root)
    manager = None if index is None else _with_index(index)
    if manager is None:
        manager = TaskManager()
        _write(path, root, manager.task_index)
    return manager


def _stamp(root: Path) -> str:
    """A hash of all YAML files' paths, sizes and times of change, and of lm-eval's version."""
    digest = hashlib.sha256(f"{_FORMAT} {version('lm-eval')} {root}".encode())
    for name, size, changed in sorted(_yaml_files(str(root))):
        digest.update(f"{name}\0{size}\0{changed}\n".encode())
    return digest.hexdigest()[:24]


def _yaml_files(folder: str) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _yaml_files(entry.path)
            elif entry.name.endswith(".yaml"):
                status = entry.stat()
                yield entry.path, status.st_size, status.st_mtime_ns


def _read(path: Path, root: Path) -> dict[str, Any] | None:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: Entry(
                name=name,
                kind=Kind[kind],
                yaml_path=None if place is None else root / place,
                tags=set(tags),
            )
            for name, kind, place, tags in rows
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOG.warning("%s cannot be read (%s); lm-eval's tasks are searched again", path, error)
        return None


def _write(path: Path, root: Path, index: Mapping[str, Any]) -> None:
    rows = [
        (
            name,
            entry.kind.name,
            None if entry.yaml_path is None else str(entry.yaml_path.relative_to(root)),
            sorted(entry.tags),
        )
        for name, entry in index.items()
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(rows))
    except OSError as error:
        _LOG.warning("the names of lm-eval's tasks are not kept for the next start: %s", error)


def _with_index(index: dict[str, Any]) -> TaskManager | None:
    """A TaskManager that has this index; None where lm-eval has changed how it holds one."""
    manager = TaskManager(include_defaults=False)
    manager._index = index
    manager._all_tasks = sorted(index)
    manager._all_groups = sorted(n for n, entry in index.items() if entry.kind is Kind.GROUP)
    manager._all_tags = sorted(n for n, entry in index.items() if entry.kind is Kind.TAG)
    manager._all_subtasks = sorted(
        n for n, entry in index.items() if entry.kind in (Kind.TASK, Kind.PY_TASK)
    )
    if manager.task_index is index and manager.all_tasks == manager._all_tasks:
        return manager
    _LOG.warning("this lm-eval holds its tasks in another way; they are searched at each start")
    return None

"""A task's requests to the model, kept in the user's cache and not built again at each start.

lm-eval renders every document with its few-shot examples into a prompt. What it made is written
once, as compressed JSON in a folder named by all that decides it; the documents themselves are
not, for they have been read by then.
"""

import gzip
import json
import logging
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance

from evomerge.files import cache_folder, write_bytes
from evomerge.scoring.fingerprints import NotKept, exact_json, fingerprint_requests

_LOG = logging.getLogger(__name__)
_FILE = "requests.json.gz"


def kept_folder(name: str) -> Path:
    """Where what is kept under a name lies."""
    return cache_folder("requests") / name


def give_requests(task: Any, build: Callable[[], None], asked: Mapping[str, Any]) -> str | None:
    """Gives an lm-eval task its instances: those that are kept, else those that `build` makes.

    asked: what decides the requests beside the task's settings and documents; as exact_json takes
    it. Returns the name under which they are kept; None where they are not: where JSON cannot
    hold a document, or code draws random numbers that others draw from too.
    """
    try:
        documents, texts, examples = _documents(task)
        name = fingerprint_requests(task, [*texts, f"{len(texts)}", *examples], asked)
    except NotKept as reason:
        _say_not_kept(task, reason)
        build()
        return None
    path = kept_folder(name) / _FILE
    kept = _read(path)
    if kept is None:
        return name if _build_and_keep(task, build, texts, path) else None
    task._instances = _instances(kept, documents)
    for message in kept["warnings"]:
        _LOG.warning("%s", message)
    return name


def _documents(task: Any) -> tuple[list[Any], list[str], list[str]]:
    """The documents, the same as exact JSON, and the few-shot examples as exact JSON.

    Global random states are put back: lm-eval is to draw from them as if nobody had looked.
    """
    states = _random_states()
    try:
        documents = list(task.eval_docs)
        sampler = getattr(task, "sampler", None)
        examples: Sequence[Any] = ()
        if task.get_config("num_fewshot"):
            examples = list(task.fewshot_docs() if sampler is None else sampler.df)
    finally:
        _restore(states)
    return documents, [exact_json(one) for one in documents], [exact_json(one) for one in examples]


def _build_and_keep(task: Any, build: Callable[[], None], texts: Sequence[str], path: Path) -> bool:
    before = _fixed(_random_states())
    with _collected_warnings() as warnings:
        build()
    try:
        if _fixed(_random_states()) != before:
            raise NotKept("its code draws from the global random state")
        content = _content(task.instances, texts, warnings)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, gzip.compress(content.encode(), compresslevel=3, mtime=0))
    except NotKept as reason:
        _say_not_kept(task, reason)
        return False
    except OSError as error:
        _LOG.warning("task %r: its requests are not kept: %s", task.config.task, error)
        return False
    return True


def _say_not_kept(task: Any, reason: NotKept) -> None:
    # Not task.task_name: it draws from the global random state.
    _LOG.info("task %r: its requests are built at each start, for %s", task.config.task, reason)


def _content(instances: Sequence[Any], texts: Sequence[str], warnings: Sequence[str]) -> str:
    """As JSON, from which _instances makes equal ones; each text stands there once."""
    places: dict[str, int] = {}
    rows = []
    documents: dict[int, Any] = {}
    for instance in instances:
        if type(instance) is not Instance or type(instance.arguments) is not tuple:
            raise NotKept("its requests are of a kind of their own")
        arguments = [
            places.setdefault(one, len(places)) if type(one) is str else [one]
            for one in instance.arguments
        ]
        rows.append([instance.request_type, instance.idx, list(instance.metadata), arguments])
        documents[instance.doc_id] = instance.doc
    for number, document in documents.items():
        known = type(number) is int and 0 <= number < len(texts)
        if not known or exact_json(document) != texts[number]:
            raise NotKept("its requests hold other documents than the task")
    content = exact_json({"requests": rows, "texts": list(places), "warnings": list(warnings)})
    if _instances(json.loads(content), documents) != list(instances):
        raise NotKept("JSON does not hold its requests")
    return content


def _instances(kept: Mapping[str, Any], documents: Any) -> list[Any]:
    """documents: by number."""
    texts = kept["texts"]
    return [
        Instance(
            request_type=kind,
            doc=documents[metadata[1]],
            arguments=tuple(texts[one] if type(one) is int else one[0] for one in arguments),
            idx=index,
            metadata=tuple(metadata),
        )
        for kind, index, metadata, arguments in kept["requests"]
    ]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        kept: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
        return kept
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        _LOG.warning("%s cannot be read (%s); its requests are built again", path, error)
        return None


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """What this room warns of meanwhile, such as a chat template that refuses a turn; each once."""
    messages: dict[str, None] = {}

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages[record.getMessage()] = None

    collector, collected = Collector(logging.WARNING), list[str]()
    room = logging.getLogger(__name__.rpartition(".")[0])
    room.addHandler(collector)
    try:
        yield collected
    finally:
        room.removeHandler(collector)
        collected += messages


def _random_states() -> tuple[Any, Any, torch.Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _restore(states: tuple[Any, Any, torch.Tensor]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def _fixed(states: tuple[Any, Any, torch.Tensor]) -> tuple[Any, ...]:
    """The same, comparable."""
    python, numpy, pytorch = states
    return python, numpy[1].tobytes(), numpy[2:], pytorch.numpy().tobytes()

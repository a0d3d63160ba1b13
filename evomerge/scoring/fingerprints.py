"""Names for what a task asks: equal names mean equal requests and equal tokens."""

import dataclasses
import functools
import hashlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from transformers import PreTrainedTokenizerBase

from evomerge.files import sha256_of_file

_FORMAT = 1  # of what is kept under these names; another number and all is made again
_PACKAGES = ("lm-eval", "jinja2", "transformers", "tokenizers")
_NOT_ASKED = ("metric_list", "process_results", "filter_list")
"""Settings that only matter once there are answers."""
_PACKAGE_FOLDERS = {"site-packages", "dist-packages"}


class NotKept(Exception):  # noqa: N818
    """Says why something has no name that would hold for the next start."""


def exact_json(value: Any) -> str:
    """The value as JSON. Raises NotKept where reading it back would not give the same."""
    _check_exact(value)
    return json.dumps(value)


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all that decides which prompt and tokens a text becomes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Padding and truncation come first in this text, and change with every call.
    rules = "" if backend is None else backend.to_str().partition('"added_tokens"')[2]
    if not rules:
        raise NotKept(f"a {type(tokenizer).__name__} does not say all of its rules")
    facts = {
        "type": type(tokenizer).__qualname__,
        "rules": hashlib.sha256(rules.encode()).hexdigest(),
        "special": sorted([name, str(one)] for name, one in tokenizer.special_tokens_map.items()),
        "split_special_tokens": getattr(tokenizer, "split_special_tokens", None),
        "chat_template": tokenizer.chat_template,
    }
    if "strftime_now" in str(tokenizer.chat_template):
        facts["today"] = date.today().isoformat()  # the template writes it into the prompt
    return _hash(exact_json(facts))


def fingerprint_requests(task: Any, documents: Sequence[str], asked: Mapping[str, Any]) -> str:
    """Of an lm-eval task whose settings, such as num_fewshot, stand.

    documents: exact_json of each, the few-shot examples too. asked: how the task is asked, beside
    its settings. Raises NotKept.
    """
    modules: dict[str, ModuleType] = {}
    settings = dataclasses.asdict(task.config)
    facts = {
        "format": _FORMAT,
        "packages": {package: version(package) for package in _PACKAGES},
        "settings": {
            name: _described(value, modules)
            for name, value in settings.items()
            if name not in _NOT_ASKED
        },
        "metrics": sorted(getattr(task, "_metric_fn_list", {})),
        "prompt": _described(getattr(task, "prompt", None), modules),
        "features": list(getattr(task, "features", ())),
        "classes": [
            _described(kind, modules) for kind in (type(task), type(getattr(task, "sampler", None)))
        ],
        "asked": dict(asked),
        "documents": _hash(*documents),
    }
    facts["code"] = sorted(_code(_imported(modules)))
    return _hash(exact_json(facts))


def combine(*names: str) -> str:
    """One name for several things in this order; of one thing, its own."""
    return names[0] if len(names) == 1 else _hash(*names)


def _hash(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode()
        digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()[:32]


def _check_exact(value: Any) -> None:
    kind = type(value)
    if kind is dict:
        for key, inner in value.items():
            if type(key) is not str:
                raise NotKept(f"JSON has no key {key!r}")
            _check_exact(inner)
    elif kind is list:
        for inner in value:
            _check_exact(inner)
    elif value is not None and kind not in (str, int, float, bool):
        raise NotKept(f"JSON cannot hold a {kind.__name__}")


def _described(value: Any, modules: dict[str, ModuleType]) -> Any:
    """What exact_json takes; for code its name, and its module in `modules`."""
    if isinstance(value, dict):
        return [[repr(key), _described(inner, modules)] for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return [type(value).__name__, *(_described(inner, modules) for inner in value)]
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        return ["partial", *(_described(part, modules) for part in parts)]
    if isinstance(value, type):
        for kind in value.__mro__:
            _note_module(kind, modules)
        return [f"{kind.__module__}.{kind.__qualname__}" for kind in value.__mro__]
    if isinstance(value, FunctionType):
        _note_module(value, modules)
        return _function(value, modules)
    if callable(value):
        raise NotKept(f"{value!r} is neither a function nor a class")
    return value


def _function(function: FunctionType, modules: dict[str, ModuleType]) -> Any:
    """Tells functions of one module apart, also lambdas and what factories return."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    bound = (function.__defaults__, function.__kwdefaults__, cells)
    code = function.__code__
    return [
        f"{function.__module__}.{function.__qualname__}",
        code.co_firstlineno,
        code.co_code.hex(),
        [repr(constant) for constant in code.co_consts if not inspect.iscode(constant)],
        list(code.co_names),
        *(_described(part, modules) for part in bound),
    ]


def _note_module(code: Callable[..., Any], modules: dict[str, ModuleType]) -> None:
    module = sys.modules.get(code.__module__)
    if module is None:
        raise NotKept(f"the module {code.__module__!r} of {code!r} is not there")
    modules[module.__name__] = module


def _imported(modules: Mapping[str, ModuleType]) -> set[Path]:
    """Files of the modules, and of what they import, as far as it is not an installed package."""
    files: set[Path] = set()
    open_ends = list(modules.values())
    while open_ends:
        module = open_ends.pop()
        file = getattr(module, "__file__", None)
        if file is None or Path(file) in files or _is_installed(Path(file), module.__name__):
            continue
        files.add(Path(file))
        for value in list(vars(module).values()):
            name = getattr(value, "__module__", None)
            known = sys.modules.get(name) if isinstance(name, str) else None
            open_ends += [value] if isinstance(value, ModuleType) else [known] if known else []
    return files


def _is_installed(file: Path, module: str) -> bool:
    """Whether a package's version tells what is in the file. Tasks of lm-eval are read as files."""
    if module.startswith("lm_eval."):
        return not module.startswith("lm_eval.tasks.")
    own = file.is_relative_to(sysconfig.get_path("stdlib"))
    return own or not _PACKAGE_FOLDERS.isdisjoint(file.parts)


def _code(files: set[Path]) -> Iterator[str]:
    """The content of Python files, and size and time of change of whatever else lies beside them
    and below, for they may read it."""
    for folder in {file.parent for file in files}:
        for path in folder.rglob("*"):
            parts = path.relative_to(folder).parts
            hidden = any(part == "__pycache__" or part.startswith(".") for part in parts)
            if hidden or not path.is_file():
                continue
            if path.suffix == ".py":
                yield f"{path} {sha256_of_file(path)}"
            else:
                status = path.stat()
                yield f"{path} {status.st_size} {status.st_mtime_ns}"

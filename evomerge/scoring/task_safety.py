"""What a task's YAML may ask for in a folder whose code was not allowed.

Beside `!function`, a task can run code or read other folders in quieter ways: metrics that the
`evaluate` library loads as scripts, data sets of kinds that are no plain files, includes and data
files elsewhere. (Templates are rendered in a sandbox: sandbox.py.)
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import yaml
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from lm_eval.api import metrics as _metrics  # noqa: F401 - fills the registry
from lm_eval.api.registry import metric_registry

from evomerge.errors import UserError
from evomerge.files import is_there, read_text
from evomerge.typed_yaml import safe_documents

FILE_FORMATS = {"json", "csv", "text", "parquet", "arrow", "xml"}
"""Names under which `datasets` reads local files, without code and without pickle."""
_ALLOW = "; if you trust the folder, allow code (--allow-code, or allow_code: true)"
_DEEP = 20  # files that include each other


def check_folder(folder: Path) -> None:
    """UserError where a task's YAML file in the folder, or one that it includes, would run code or
    leave the folder, or is not YAML."""
    root = folder.resolve()
    for path in sorted(folder.glob("**/*.yaml")):
        _check_file(path, root, ())


def _check_file(path: Path, root: Path, above: tuple[Path, ...]) -> None:
    try:
        real = path.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{str(path)[:200]!r} is no path: {error}; expected a YAML file") from None
    if not real.is_relative_to(root):
        raise UserError(f"{path} lies outside the task folder {root}{_ALLOW}")
    if real in above or len(above) > _DEEP:
        raise UserError(f"{path} includes itself, or {_DEEP} files each other; expected no circle")
    content = _read(path)
    for what, why in _walk(content, root, ()):
        raise UserError(f"{path}: {what}: {why}{_ALLOW}")
    if not isinstance(content, dict):
        return
    includes = content.get("include") or []
    for include in includes if isinstance(includes, list) else [includes]:
        if not isinstance(include, str):
            raise UserError(f"{path}: include: {include!r:.80}; expected the name of a YAML file")
        _check_file(path.parent / include, root, (*above, real))


def _read(path: Path) -> Any:
    """The content, without running what `!function` names."""

    class Loader(yaml.SafeLoader):
        pass

    def refuse(_: yaml.SafeLoader, node: yaml.Node) -> None:
        raise UserError(
            f"{path}: '!function {node.value!s:.80}' would run Python code of that folder{_ALLOW}"
        )

    Loader.add_constructor("!function", refuse)
    try:
        documents = safe_documents(read_text(path), str(path), Loader)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a task: {error}") from error
    return documents[0][1] if documents else None


def _walk(value: Any, root: Path, place: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(what, why) of what would run code or leave the folder, anywhere in the file: groups hold
    tasks inside."""
    if isinstance(value, dict):
        for key, own in value.items():
            yield from _walk(own, root, (*place, str(key)))
        if value.get("hf_evaluate"):
            yield ".".join((*place, "hf_evaluate")), "the evaluate library loads metrics as scripts"
        for key in ("class", "custom_dataset"):
            if key in value:
                yield ".".join((*place, key)), "names Python code"
        if value.get("use_prompt") and str(value["use_prompt"]).partition(":")[0] != "qa-basic":
            yield ".".join((*place, "use_prompt")), "reads another file or runs a package"
        source = value.get("dataset_path")
        if isinstance(source, str) and source in _PACKAGED_DATASETS_MODULES.keys() - FILE_FORMATS:
            yield (
                ".".join((*place, "dataset_path")),
                f"{source!r} is no plain file format; expected {', '.join(sorted(FILE_FORMATS))}",
            )
        yield from _metric(value, place)
        yield from _data(value, root)
    elif isinstance(value, list):
        for number, own in enumerate(value):
            yield from _walk(own, root, (*place, str(number)))


def _metric(value: dict[Any, Any], place: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    rows = value.get("metric_list")
    for row in rows if isinstance(rows, list) else ():
        name = row.get("metric") if isinstance(row, dict) else None
        # With process_results there is no metric's own function; it is code, and refused itself.
        if isinstance(name, str) and name not in metric_registry:
            yield (
                ".".join((*place, "metric_list")),
                f"{name!r:.80} is no metric of lm-eval, and would be loaded as a script",
            )


def _data(value: dict[Any, Any], root: Path) -> Iterator[tuple[str, str]]:
    source, settings = value.get("dataset_path"), value.get("dataset_kwargs")
    names = [source] if isinstance(source, str) else []
    if isinstance(settings, dict):
        for key in ("cache_dir", "storage_options", "token", "download_config"):
            if key in settings:
                yield f"dataset_kwargs.{key}", "would read or write elsewhere"
        files = list(_texts(settings.get("data_files")))
        names += [*files, *_texts(settings.get("data_dir"))]
    for name in names:
        if "://" in name and not name.startswith("hf://"):
            yield f"{name!r:.80}", "would be fetched from an address"
        elif not _inside(name, root):
            yield f"{name!r:.80}", f"lies outside the task folder {root}"
    if source == "json" and isinstance(settings, dict):
        for path in [each for name in files for each in _paths(name, root)]:
            check_documents(path)


def _paths(name: str, root: Path) -> list[Path]:
    """The plain files that a name or pattern means."""
    try:
        found = list(root.glob(name)) if _is_pattern(name) else [root / name]
        return [path for path in found if path.is_file() and path.suffix not in _PACKED]
    except (OSError, ValueError, NotImplementedError):
        return []  # no path at all: said where it is opened


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


_PACKED = {".gz", ".bz2", ".xz", ".zip", ".zst", ".lz4", ".7z"}


def check_documents(path: Path) -> None:
    """UserError where a file of documents is neither a JSON object a line nor one JSON list or
    object: the reader that `datasets` uses ends the process at some of these."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    lines = [line for line in content.splitlines() if line.strip()]
    if lines and isinstance(_parsed(lines[0]), dict):
        bad = next((n for n, line in enumerate(lines) if not isinstance(_parsed(line), dict)), None)
        if bad is not None:
            raise UserError(f"{path}: document {bad} is no JSON object; expected one on each line")
    elif not isinstance(_parsed(content), (dict, list)):
        raise UserError(f"{path} is neither JSON nor JSON lines; expected an object on each line")


def _parsed(text: bytes) -> Any:
    """None for what is no JSON."""
    try:
        return orjson.loads(text)
    except ValueError:  # NaN, and numbers of many digits, which datasets reads
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for own in value.values():
            yield from _texts(own)
    elif isinstance(value, list):
        for own in value:
            yield from _texts(own)


def _inside(name: str, root: Path) -> bool:
    """Whether a file, or the files of a pattern, lie in the folder. Paths count from there."""
    if name.startswith("hf://"):
        return True
    try:
        path = root / Path(name).expanduser()
        if not path.resolve().is_relative_to(root):
            return False
        if _is_pattern(name):
            return ".." not in path.parts and all(
                each.resolve().is_relative_to(root) for each in root.rglob("*")
            )
    except (OSError, ValueError, RuntimeError):
        return is_there(root)  # no path at all: said where it is opened
    return True

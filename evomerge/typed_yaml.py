"""YAML files into frozen dataclasses, and back; a mistake says where, what, and what was expected.

quickstart.yaml, line 14: tasks.capital.metrc: unknown key; did you mean 'metric'? Known: ...
"""

import functools
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from evomerge.errors import UserError, did_you_mean
from evomerge.files import read_text

T = TypeVar("T")
KeyPath = tuple[str | int, ...]


def read_yaml(path: Path, kind: type[T]) -> T:
    """Reads a YAML file into `kind`, a dataclass that pydantic can validate.

    Raises UserError for a file that cannot be
    read, is no YAML mapping, has a key twice, or does not fit.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    return parse_yaml(text, kind, name=str(path))


def parse_yaml(text: str, kind: type[T], *, name: str) -> T:
    """As `read_yaml`, from a text; `name` stands for the file in error messages."""
    documents = safe_documents(text, name)
    if len(documents) > 1:
        raise UserError(f"{name}: holds {len(documents)} YAML documents; expected one")
    node, data = documents[0] if documents else (None, None)
    lines = dict(_lines(node, (), name)) if node is not None else {}
    return validate(data, kind, name=name, lines=lines)


def safe_documents(
    text: str, name: str, kind: type[yaml.SafeLoader] = yaml.SafeLoader
) -> list[tuple[yaml.Node, Any]]:
    """The YAML documents of a text: nodes, and plain values without tags of any program's own.

    kind: the loader, which may know further tags. UserError for what is no YAML, and where aliases
    (`*name`) make much of little.
    """
    found = []
    loader = None
    try:
        loader = kind(text)
        while loader.check_node():
            node: yaml.Node = loader.get_node()  # type: ignore[assignment]
            _check_size(node, len(text), name)
            found.append((node, loader.construct_document(node)))
    except UserError:
        raise
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{name}: is not YAML: {str(error) or type(error).__name__}") from error
    except _UNREADABLE as error:
        raise UserError(
            f"{name}: has a value that is none of its kind, such as a date 2020-99-99, or !!int of "
            f"a word: {type(error).__name__}: {error}; expected plain YAML"
        ) from error
    finally:
        if loader is not None:
            loader.dispose()
    return found


def with_value(text: str, key: str, value: str) -> str:
    """The text with another value of one of its first keys; as it is where it has no such key."""
    for node, _ in safe_documents(text, "text")[:1]:
        if isinstance(node, yaml.MappingNode):
            for name, own in node.value:
                if name.value == key:
                    start, end = own.start_mark.index, own.end_mark.index
                    line = "\n" if text[:end].endswith("\n") else ""  # of a text over lines
                    return f"{text[:start]}{value}{line}{text[end:]}"
    return text


_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, OverflowError)
"""What PyYAML lets pass where a value does not fit its tag."""
_ALIASES = 10_000
"""Values that aliases may add to those that are written."""


def _check_size(node: yaml.Node, written: int, name: str) -> None:
    """A value takes a character at least, so that more of them than characters are aliases'."""
    left = written + _ALIASES
    waiting: list[tuple[yaml.Node, int]] = [(node, 0)]
    while waiting:
        each, depth = waiting.pop()
        left -= 1
        if left < 0 or depth > _DEPTH:
            raise UserError(
                f"{name}: aliases (*name) or nesting make the file too large: more than "
                f"{written + _ALIASES} values, or {_DEPTH} levels; expected a plain file"
            )
        if each.tag in _NO_JSON:
            raise UserError(f"{name}: {each.tag.rpartition(':')[2]}: expected plain values")
        if isinstance(each, yaml.MappingNode):
            waiting += [(one, depth + 1) for pair in each.value for one in pair]
        elif isinstance(each, yaml.SequenceNode):
            waiting += [(one, depth + 1) for one in each.value]
        elif each.tag == _INTEGER and len(each.value) > _DIGITS:
            raise UserError(f"{name}: a number of {len(each.value)} digits; expected a shorter one")


_NO_JSON = {f"tag:yaml.org,2002:{kind}" for kind in ("set", "omap", "pairs", "binary")}
_INTEGER = "tag:yaml.org,2002:int"
_DIGITS = 100
_DEPTH = 100
"""Levels of nesting."""


def validate(
    data: Any, kind: type[T], *, name: str, lines: Mapping[KeyPath, int] | None = None
) -> T:
    """As `parse_yaml`, from data that was read already; `lines` are those of the file's keys."""
    if not isinstance(data, Mapping):
        raise UserError(f"{name}: expected a mapping of keys, got {type(data).__name__}")
    adapter = _adapter(cast(Hashable, kind))
    try:
        result: T = adapter.validate_python(dict(data))
    except ValidationError as error:
        schema = _schema(cast(Hashable, kind))
        found = error.errors(include_url=False)
        problems = [_describe(each, data, lines or {}, schema, name) for each in found[:_SHOWN]]
        more = [f"{name}: and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        raise UserError("\n".join(dict.fromkeys([*problems, *more]))) from None
    return result


@functools.cache
def _schema(kind: Hashable) -> dict[str, Any]:
    return _adapter(kind).json_schema()


_SHOWN = 30
"""Mistakes that are told at a time."""


@functools.cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(type, kind))


def _lines(node: yaml.Node, path: KeyPath, name: str) -> Iterator[tuple[KeyPath, int]]:
    """Line number, from 1, of every key and list item; refuses a key that stands twice."""
    yield path, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{name}, line {line}: a key is a list or mapping; expected a name")
            if key.value in seen:
                where = ".".join(map(str, (*path, key.value)))
                first = seen[key.value]
                raise UserError(
                    f"{name}, line {line}: {where}: the key stands twice (line {first})"
                )
            seen[key.value] = line
            yield from _lines(value, (*path, key.value), name)
            yield (*path, key.value), line
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _lines(item, (*path, number), name)


def _describe(
    problem: Any, data: Any, lines: Mapping[KeyPath, int], schema: dict[str, Any], name: str
) -> str:
    path = _path_in(data, problem["loc"])
    text = str(problem["msg"]).removeprefix("Value error, ")
    value = problem["input"]
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        path = (*path, problem["loc"][-1]) if path[-1:] != problem["loc"][-1:] else path
        text = f"unknown key; {did_you_mean(str(path[-1]), _known_keys(schema, path[:-1]))}"
    elif problem["type"] in ("missing", "missing_argument"):
        path = (*path, problem["loc"][-1])
        text = "is missing"
    elif problem["type"] != "value_error":
        text = f"{text[:1].lower()}{text[1:]}, got {value!r:.80}"
    where = ".".join(map(str, path))
    line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)
    place = f"{name}, line {line}" if line else name
    return f"{place}: {where}: {text}" if where else f"{place}: {text}"


def _path_in(data: Any, location: KeyPath) -> KeyPath:
    """The part of pydantic's location that exists in the file (it also names union members)."""
    path: list[str | int] = []
    for step in location:
        keys = data if isinstance(data, dict) else range(len(data) if isinstance(data, list) else 0)
        if step in keys:
            data = data[step]
            path.append(step)
    return tuple(path)


def _known_keys(schema: dict[str, Any], path: KeyPath) -> set[str]:
    """Property names that the JSON schema allows at a path."""
    places = [schema]
    for step in (*path, None):
        places = [found for place in places for found in _alternatives(place, schema)]
        if step is not None:
            places = [
                inner
                for place in places
                for inner in (
                    place.get("properties", {}).get(step),
                    place.get("additionalProperties"),
                    place.get("items"),
                )
                if isinstance(inner, dict)
            ]
    return {key for place in places for key in place.get("properties", {})}


def _alternatives(place: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema at a place, with references and unions resolved."""
    if "$ref" in place:
        place = schema["$defs"][place["$ref"].rsplit("/", 1)[-1]]
    yield place
    for key in ("anyOf", "oneOf", "allOf"):
        for option in place.get(key, []):
            yield from _alternatives(option, schema)


def dump_yaml(content: Mapping[str, Any]) -> str:
    """Plain dictionaries and lists as people read them, in their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100)


class _Dumper(yaml.SafeDumper):
    """Short lists and mappings of plain values on one line; no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: Any = None) -> yaml.MappingNode:
        plain = all(not isinstance(value, (dict, list)) for value in mapping.values())
        numbers = plain and all(isinstance(value, (int, float)) for value in mapping.values())
        return super().represent_mapping(tag, mapping, flow_style=numbers and len(mapping) > 0)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: Any = None) -> Any:
        plain = all(not isinstance(value, (dict, list)) for value in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)

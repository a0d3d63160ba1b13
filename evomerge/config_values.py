"""Values of the configuration that people write in a shorter form than the program reads.

Each reader is given what YAML made of the value. It returns what the type of the key wants, or what
it does not understand as it is, and raises ValueError that says what was expected.
"""

import re
from typing import Any

from evomerge.architectures import LAYER_PARTS
from evomerge.errors import did_you_mean
from evomerge.methods import METHODS
from evomerge.notify import KEPT_NOTIFY, is_url
from evomerge.searching.groups import Blocks, Knots
from evomerge.searching.space import Range


def read_model(value: Any) -> Any:
    """A path or hub id may stand for itself; `id@revision` gives a revision."""
    if not isinstance(value, str):
        return value
    path, _, revision = value.partition("@")
    return {"path": path, "revision": revision or None}


def read_list(value: Any) -> Any:
    """One value may stand for a list of it."""
    return value if isinstance(value, list) else [value]


def read_known(names: Any, kind: str) -> Any:
    """A reader of one name or several, all of which must be among `names`."""

    def check(value: Any) -> Any:
        for name in value if isinstance(value, (list, tuple)) else [value]:
            if not isinstance(name, str) or name not in names:
                raise ValueError(f"unknown {kind} {name!r:.80}; {did_you_mean(str(name), names)}")
        return value

    return check


def read_range(value: Any) -> Any:
    """[low, high], or one number."""
    if isinstance(value, list):
        numbers = all(isinstance(end, (int, float)) for end in value)
        if len(value) != 2 or not numbers or not value[0] < value[1]:
            raise ValueError(f"expected [low, high] with low < high, or one number, got {value}")
    return value


def read_ranges(value: Any) -> Any:
    """Names and limits of parameters, against the rows of METHODS."""
    if not isinstance(value, dict):
        return value
    rows = {row.name: row for method in METHODS.values() for row in method.parameters}
    for name, span in value.items():
        if name not in rows or isinstance(rows[name].default, bool):
            numeric = [row for row in rows if not isinstance(rows[row].default, bool)]
            raise ValueError(f"unknown parameter {name!r}; {did_you_mean(str(name), numeric)}")
        ends = read_range(span) if isinstance(span, list) else [span]
        row = rows[name]
        for end in ends:
            if not isinstance(end, (int, float)) or not row.minimum <= end <= row.maximum:
                limits = f"{row.minimum:g} to {row.maximum:g}"
                raise ValueError(f"{name}: got {end!r}, expected a number from {limits}")
    return value


def read_lines(value: Any) -> Any:
    """`true`, or ranges for alpha and beta -> the two ranges."""
    if value in (None, False):
        return None
    given = {} if value is True else value
    if not isinstance(given, dict) or set(given) - {"alpha", "beta"}:
        raise ValueError(f"expected true, or ranges of alpha and beta, got {value!r}")
    spans = {"alpha": [0.0, 1.0], "beta": [0.0, 1.0], **given}
    return tuple(
        range_of(spans, name) for name in ("alpha", "beta") if read_range(spans[name]) is not None
    )


def read_depth(value: Any) -> Any:
    """`global`, `layers`, `{blocks: N}` or `{knots: N}`."""
    if isinstance(value, dict) and len(value) == 1:
        ((name, count),) = value.items()
        if name in ("blocks", "knots") and isinstance(count, int) and count >= 1:
            return Blocks(size=count) if name == "blocks" else Knots(count=count)
    if value in ("global", "layers"):
        return value
    raise ValueError(
        f"expected global, layers, {{blocks: N}} (N layers each) or {{knots: N}}, got {value!r}"
    )


def read_parts(value: Any) -> Any:
    """`together`, `separate`, or which parts go together: [[attention, norm], [mlp]]."""
    if value == "together":
        return (LAYER_PARTS,)
    if value == "separate":
        return tuple((part,) for part in LAYER_PARTS)
    lists = isinstance(value, list) and all(isinstance(group, list) for group in value)
    if lists and sorted(str(p) for group in value for p in group) == sorted(LAYER_PARTS):
        return tuple(tuple(group) for group in value)
    raise ValueError(
        f"expected together, separate, or a list of lists in which each of "
        f"{', '.join(LAYER_PARTS)} stands once, got {value!r}"
    )


def read_clock(value: Any) -> Any:
    """`07:00` -> minutes after midnight; YAML reads an unquoted 07:00 as a number of its own."""
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", str(value))
    if isinstance(value, str) and match:
        return int(match[1]) * 60 + int(match[2])
    raise ValueError(f'expected a clock time in quotes, such as "07:00", got {value!r}')


def read_span(value: Any) -> Any:
    """[fewest, most]."""
    whole = isinstance(value, list) and all(isinstance(end, int) for end in value)
    if not whole or len(value) != 2 or not 1 <= value[0] <= value[1]:
        raise ValueError(f"expected [fewest, most] layers, got {value!r}")
    return tuple(value)


def range_of(ranges: dict[str, Any], name: str) -> Range | None:
    """A range as the space wants it; None where the file says nothing."""
    span = ranges.get(name)
    return (float(span[0]), float(span[1])) if isinstance(span, list) else span


def read_notify(value: Any) -> Any:
    """An http(s) URL, or a command for the shell."""
    if value is None or value == KEPT_NOTIFY:
        return None
    scheme = re.match(r"\s*(\w+)://", value) if isinstance(value, str) else None
    if not isinstance(value, str) or not value.strip() or (scheme and not is_url(value)):
        raise ValueError(f"expected an http:// or https:// URL, or a shell command, got {value!r}")
    return value


def read_switch(value: Any) -> Any:
    """true: a mapping of defaults; false: none."""
    if value is True:
        return {}
    return None if value is False else value

"""Valid inputs, spoilt: trees of values (JSON, YAML) and bytes."""

import json
import struct
from collections.abc import Iterator
from random import Random
from typing import Any

DEEP = 3000
"""Levels of nesting, beyond what Python's recursion takes."""


class Raw(str):
    """Stands in a tree for text that is written as it is."""


SCALARS: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, -1e308, 2**31, 2**63, 2**64, -(2**63)),
    *(10**40, "", " ", "0", "-1", "1e9", "nan", "true", "base", "merged", "union", "a" * 300),
    *("\x00", "a\x00b", "é", "\u202e", "😀", "\ud800", "\n", "a\tb", "%s%n", "{0}", "$HOME", "~"),
    *("..", ".", "/", "../../etc/passwd", "/etc/passwd", "/dev/zero", "file:///etc/passwd"),
    *("//host/share", "C:\\x", "a/../../b", "con", "https://127.0.0.1:9/x", "a/b", "x" * 1000),
    *("<script>", "'; drop table x", "{{ ''.__class__.__mro__ }}", "{% for a in b %}", "!function"),
    *([], {}, [[]], [None], {"": ""}, {"a": {"b": 1}}, [1, 2, 3], ["a", "a"], [0.5, 0.1], [1, "a"]),
    *(
        Raw("NaN"),
        Raw("Infinity"),
        Raw("-Infinity"),
        Raw("1" + "0" * 5000),
        Raw("-0"),
        Raw("1e999"),
    ),
    *(Raw('"\\ud800"'), Raw('"\\u0000"'), [0] * 200),
)
"""Values that readers may not expect."""

HEAVY: tuple[Raw, ...] = (
    *(Raw("[" * DEEP + "]" * DEEP), Raw('{"a":' * DEEP + "1" + "}" * DEEP)),
    *(Raw("[" + "0," * 3000 + "0]"), Raw("[" * 150 + "]" * 150), Raw("1" + "0" * 5000)),
)
"""The same, but slow to read; they are taken once in 300 times."""


YAML: tuple[Raw, ...] = tuple(
    Raw(text)
    for text in (
        *('!!python/object/apply:os.system ["touch pwned"]', "!!python/name:os.system x"),
        *("!!python/object/new:os.system [touch pwned]", "!!python/module:os x"),
        *("!function evil.run", "!function os.system", "!include x.yaml", "!!binary eHg=", "!x y"),
        *("!!binary '*'", "!!int x", "!!float x", "!!bool x", "!!timestamp x", "!!null x"),
        *("!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "2020-99-99", "2020-01-01", "1:99:99"),
        *(
            "07:00",
            "0o777",
            "0b11",
            "0x" + "f" * 4000,
            "1_000",
            ".nan",
            ".inf",
            "-.inf",
            "~",
            "=",
            "<<",
        ),
        *("&a [*a]", "&a {a: *a}", "*missing", "&a 1", "{<<: [{a: 1}], b: 2}", "{? [1, 2] : 3}"),
        *(
            "{? {a: 1} : 3}",
            "{1: 2, 1: 3}",
            "{<<: x}",
            "{1.5: a, null: b, true: c}",
            "!!str {a: b}",
        ),
        "[&a0 [x,x,x,x,x,x,x,x], "
        + ", ".join(f"&a{n} [{','.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 12))
        + "]",
        "{a: &b {k: v, "
        + "".join(f"k{n}: v, " for n in range(50))
        + "}, c: {<<: ["
        + "*b, " * 50
        + "]}}",
    )
)
"""Values that only YAML has: tags, aliases that multiply, dates, numbers to the base of 60."""


def copied(tree: Any) -> Any:
    """As copy.deepcopy, for what JSON has."""
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list) else tree


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value inside."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in pairs:
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from places(value)


def spoil(random: Random, tree: Any, scalars: tuple[Any, ...] = SCALARS) -> Any:
    """A copy with one to four changes."""
    tree = {"": copied(tree)}
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        container, key = random.choice(list(places(tree)))
        _change(random, container, key, tree, scalars)
    return tree.get("")


def _change(random: Random, container: Any, key: Any, tree: Any, scalars: tuple[Any, ...]) -> None:
    value = container[key]
    match random.randrange(10):
        case 0 if container is not tree:
            del container[key]
        case 1 if isinstance(value, (int, float)) and not isinstance(value, bool):
            container[key] = random.choice((-value, value + 1, value * 10, value - 1, value / 3))
        case 2 if isinstance(value, str):
            container[key] = _other_text(random, value)
        case 3 if isinstance(container, dict) and container is not tree:
            other = random.choice(("", "x", str(key) + "x", str(key)[:-1], "../x", "a" * 400))
            container[other] = container.pop(key)
        case 4 if isinstance(value, list) and value:
            container[key] = value * random.choice((2, 3, 50))
        case 5:
            container[key] = random.choice(([value], {"a": value}, [value, value], str(value)[:99]))
        case 6:
            here, there = random.choice(list(places(tree)))
            container[key] = copied(here[there])
        case 7 if isinstance(value, dict):
            value[random.choice(("x", "base", "path", "include", "<<", "class"))] = copied(
                random.choice(scalars)
            )
        case _:
            heavy = random.random() < 0.003
            container[key] = copied(random.choice(HEAVY if heavy else scalars))


def _other_text(random: Random, text: str) -> str:
    at = random.randrange(len(text) + 1)
    return random.choice(
        (
            *(text[:at], text[at:], text + text, text[:at] + "\x00" + text[at:], text.upper()),
            *("../" + text, "/" + text, text + "/", text[:at] + "é" + text[at:], text[::-1]),
        )
    )


def written(tree: Any) -> str:
    """The tree as JSON, which is YAML too, with raw text as it is."""
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, dict):
        inside = ", ".join(f"{json.dumps(str(k))}: {written(v)}" for k, v in tree.items())
        return f"{{{inside}}}"
    if isinstance(tree, list):
        return f"[{', '.join(map(written, tree))}]"
    return json.dumps(tree)


NUMBERS = tuple(
    struct.pack(kind, number)
    for kind, numbers in (
        ("<Q", (0, 1, 8, 2**31, 2**32, 2**60, 2**63, 2**64 - 1)),
        ("<I", (0, 1, 2**16, 2**31, 2**32 - 1)),
        (">I", (1, 2**31, 2**32 - 1)),
        ("<B", (0, 1, 127, 255)),
    )
    for number in numbers
)
"""Lengths and counts that are none."""


def spoil_bytes(random: Random, content: bytes) -> bytes:
    """A copy with one to four changes: flips, cuts, repeats, lengths."""
    found = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 3, 4))):
        at = random.randrange(len(found) + 1)
        end = min(len(found), at + random.choice((1, 1, 2, 8, 64, 1000)))
        match random.randrange(7):
            case 0:
                del found[at:]
            case 1:
                del found[at:end]
            case 2:
                found[at:at] = found[at:end] * random.choice((1, 2, 50))
            case 3:
                number = random.choice(NUMBERS)
                found[at : at + len(number)] = number
            case 4:
                found[at:end] = random.randbytes(end - at)
            case 5:
                found[at:at] = random.choice(
                    (b"\x00", b"\xff\xfe", b"\n", b"{", b'"', b"\x1f\x8b", b"&a")
                )
            case 6 if at < len(found):
                found[at] ^= 1 << random.randrange(8)
    return bytes(found)

"""What happens to each tensor -> as few rules as layers and parts allow."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from evomerge.architectures import place
from evomerge.methods.method import Value
from evomerge.recipe import ParameterValue, Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What happens to one tensor."""

    sources: tuple[str, ...]
    parameters: tuple[tuple[str, Value], ...]
    """(name, value); a tuple has one number per source."""


def gathered(method: str, resolved: Mapping[str, Resolved]) -> tuple[Rule, ...]:
    """Rules of one method that say the same of every tensor (by name)."""
    cells: dict[tuple[int | None, str], dict[Resolved, list[str]]] = defaultdict(dict)
    for name, what in resolved.items():
        where = place(name)
        cells[where.layer, where.part].setdefault(what, []).append(name)
    if len({what for cell in cells.values() for what in cell}) == 1:
        return (_rule(method, next(iter(resolved.values()))),)
    rules = []
    uniform: dict[Resolved, dict[int | None, list[str]]] = {}
    for (layer, part), cell in cells.items():
        if len(cell) == 1:
            what = next(iter(cell))
            uniform.setdefault(what, {}).setdefault(layer, []).append(part)
            continue
        at = None if layer is None else (layer,)
        for what, names in cell.items():
            rule = _rule(method, what)
            rules.append(replace(rule, layers=at, parts=(part,), tensors=tuple(names)))
    for what, by_layer in uniform.items():
        rules += _uniform_rules(_rule(method, what), by_layer)
    return tuple(rules)


def _uniform_rules(rule: Rule, by_layer: Mapping[int | None, list[str]]) -> list[Rule]:
    """One rule for the ends, and one for all layers in which the same parts are meant."""
    rules = []
    layers_of: dict[tuple[str, ...], list[int]] = {}
    for layer, parts in by_layer.items():
        if layer is None:
            rules.append(replace(rule, parts=tuple(parts)))
        else:
            layers_of.setdefault(tuple(parts), []).append(layer)
    for together, layers in layers_of.items():
        rules.append(replace(rule, layers=tuple(sorted(layers)), parts=together))
    return rules


def _rule(method: str, what: Resolved) -> Rule:
    parameters: dict[str, ParameterValue] = {}
    for name, value in what.parameters:
        if isinstance(value, tuple):
            parameters[name] = dict(zip(what.sources, value, strict=True))
        else:
            parameters[name] = value
    return Rule(method=method, sources=what.sources, parameters=parameters)

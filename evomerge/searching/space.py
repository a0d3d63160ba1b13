"""The search space: which recipes a study may propose.

A model is cut into groups (depth times part); every group takes its numbers from one cell, or,
with knots, from the two nearest cells, interpolated over the depth. A cell owns the parameters
that samplers see. `propose` turns parameters into a recipe; `encode` is its inverse: parameters
that the chosen method ignores take their defaults, so that every recipe has one encoding.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Protocol

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)

from evomerge.architectures import LAYER_PARTS
from evomerge.errors import EvomergeError
from evomerge.methods import METHODS
from evomerge.methods.derivative import Slopes
from evomerge.methods.method import Method, Parameter
from evomerge.recipe import BASE, Lines, ParameterValue, Recipe, Rule
from evomerge.searching.equal_weights import without_absent
from evomerge.searching.groups import Cell, Group

Range = tuple[float, float] | float
"""(low, high): explored; one number: fixed."""

Parameters = dict[str, Any]
"""What Optuna stores of a proposal: name -> number or category."""


LINES = ("lines/alpha", "lines/beta")
"""Names of LiNeS' two numbers in a trial."""

OFF = 0.25
"""Where the number that switches a source is below, the source is left out."""


class Space(Protocol):
    """What a study may propose: recipes, written in parameters that samplers see."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Every merge method that a proposal may use."""
        ...

    def describe(self) -> str:
        """In words, for a terminal."""
        ...

    def starts(self) -> dict[str, Recipe]:
        """Name -> recipe that is tried beside the baselines before any proposal."""
        ...

    def distributions(self) -> dict[str, BaseDistribution]:
        """Every parameter that samplers see, in a fixed order."""
        ...

    def propose(self, trial: optuna.Trial) -> Recipe:
        """Asks the trial for every parameter and makes the recipe of them."""
        ...

    def recipe(self, parameters: Mapping[str, Any]) -> Recipe:
        """The recipe of a full set of parameters."""
        ...

    def encode(self, recipe: Recipe) -> Parameters:
        """The parameters of which `recipe` makes these weights; NotInSpace if there are none."""
        ...

    def slopes(self, recipe: Recipe, by_rule: Sequence[Slopes]) -> dict[str, float]:
        """The slopes of a score in the parameters that samplers see, from those in the numbers of
        each rule of a recipe that `recipe` made; only of parameters that have one."""
        ...


def ask(trial: optuna.Trial, distributions: Mapping[str, BaseDistribution]) -> Parameters:
    """Every parameter, suggested by the trial's sampler."""
    parameters: Parameters = {}
    for name, distribution in distributions.items():
        if isinstance(distribution, FloatDistribution):
            parameters[name] = trial.suggest_float(
                name, distribution.low, distribution.high, step=distribution.step
            )
        elif isinstance(distribution, CategoricalDistribution):
            parameters[name] = trial.suggest_categorical(name, distribution.choices)
    return parameters


class NotInSpace(EvomergeError):  # noqa: N818 - a fact about a recipe, not a failure
    """The recipe cannot be written in this space's parameters; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """Everything a study may propose.

    `template` carries what all proposals share: models, seed and dtype (its rules are ignored).
    `ranges(cell, parameter)` gives the range of a parameter in a cell.
    """

    template: Recipe
    groups: tuple[Group, ...]
    methods: tuple[str, ...]
    method_per_group: bool
    ranges: Callable[[Cell, Parameter], Range]
    lines: tuple[Range, Range] | None = None
    """Ranges of LiNeS' alpha and beta, one pair for the whole model; None: not used."""
    switches: bool = False
    """Whether each source has a number, from 0 to 1, that switches it for the whole model."""

    def propose(self, trial: optuna.Trial) -> Recipe:
        """Asks the trial for every parameter, used or not, and makes the recipe of them."""
        return self.recipe(ask(trial, self.distributions()))

    def describe(self) -> str:
        """In words, for a terminal."""
        places = ", ".join(group.place.label for group in self.groups)
        return f"methods {', '.join(self.methods)}; groups {places}"

    def starts(self) -> dict[str, Recipe]:
        """None: the baselines stand for this space."""
        return {}

    def distributions(self) -> dict[str, BaseDistribution]:
        """Every parameter that samplers see, in a fixed order."""
        found: dict[str, BaseDistribution] = {}
        for group in self.groups:
            if len(self.methods) > 1:
                choices = CategoricalDistribution(self.methods)
                found.setdefault(self._method_name(group), choices)
            for name, operands in self._choices(group).items():
                found.setdefault(name, CategoricalDistribution(tuple(operands)))
            for cell, _ in group.cells:
                for parameter in self._parameters():
                    for name in self._names(cell, parameter):
                        match self.ranges(cell, parameter):
                            case (low, high):
                                found[name] = FloatDistribution(low, high, step=parameter.step)
                            case _:
                                pass
        for name, span in self._lines_ranges().items():
            if isinstance(span, tuple):
                found[name] = FloatDistribution(*span)
        if self.switches:
            found |= {_switch(name): FloatDistribution(0.0, 1.0) for name in self.template.sources}
        return found

    def recipe(self, parameters: Mapping[str, Any]) -> Recipe:
        """The recipe of a full set of parameters; neighbouring groups stay apart."""
        return replace(
            self.template, rules=tuple(self._rule(group, parameters) for group in self.groups)
        )

    def encode(self, recipe: Recipe) -> Parameters:
        """The parameters of which `recipe` makes these weights; NotInSpace if there are none."""
        encoded: Parameters = {}
        if recipe.stack is not None:
            raise NotInSpace("it stacks layers")
        rules = [without_absent(_rule_of(group, recipe)) for group in self.groups]
        used = {source for rule in rules if _takes_all(rule) for source in rule.sources}
        for group, rule in zip(self.groups, rules, strict=True):
            if rule.method not in self.methods:
                raise NotInSpace(f"method {rule.method} is not in the space")
            encoded[self._method_name(group)] = rule.method
            for name, operands in self._choices(group).items():
                encoded[name] = self._choice(rule, name, operands)
            if len(group.cells) == 1:
                encoded |= self._encode_cell(group.cells[0][0], rule, used)
        encoded |= self._encode_lines(recipe)
        encoded |= {_switch(source): float(source in used) for source in self.template.sources}
        distributions = self.distributions()
        encoded = {name: encoded[name] for name in distributions}
        for name, distribution in distributions.items():
            if not distribution._contains(distribution.to_internal_repr(encoded[name])):
                raise NotInSpace(f"{name} = {encoded[name]} is outside the space")
        weights = self.recipe(encoded)
        for ours, theirs in zip(weights.rules, rules, strict=True):
            if not _same(without_absent(ours), theirs):
                raise NotInSpace(f"{ours.label()} cannot be written in the space's parameters")
        return encoded

    def slopes(self, recipe: Recipe, by_rule: Sequence[Slopes]) -> dict[str, float]:
        """See `Space`: a cell's slope is the sum over its groups, each times its share."""
        found: dict[str, float] = {}
        for group, rule, slopes in zip(self.groups, recipe.rules, by_rule, strict=True):
            for name, each in slopes.items():
                parameter = METHODS[rule.method].parameter(name)
                sources = rule.sources if parameter.per_source else rule.sources[:1]
                for cell, share in group.cells:
                    if isinstance(self.ranges(cell, parameter), tuple):
                        for source, slope in zip(sources, each, strict=True):
                            key = _name(cell, parameter, source)
                            found[key] = found.get(key, 0.0) + share * slope
        return found

    def _rule(self, group: Group, parameters: Mapping[str, Any]) -> Rule:
        method = METHODS[parameters.get(self._method_name(group), self.methods[0])]
        sources = self._switched_on(parameters)
        choice = self._choice_name(group, method)
        if choice is not None:
            sources = self._choices(group)[choice][parameters[choice]]
        values: dict[str, ParameterValue] = {}
        for parameter in method.parameters:
            if isinstance(parameter.default, bool):
                values[parameter.name] = parameter.default
                continue
            numbers = {
                source: self._value(group, parameter, source, parameters) for source in sources
            }
            values[parameter.name] = numbers if parameter.per_source else numbers[sources[0]]
        return Rule(
            method=method.name,
            sources=sources,
            parameters=values,
            layers=group.place.layers,
            parts=group.place.parts,
            lines=self._lines(method, parameters),
        )

    def _switched_on(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """The sources that are not left out; at least as many as every method needs."""
        sources = tuple(self.template.sources)
        if not self.switches:
            return sources
        ranked = sorted(sources, key=lambda source: -parameters[_switch(source)])
        on = sum(parameters[_switch(source)] >= OFF for source in sources)
        kept = ranked[: max(on, *(METHODS[name].minimum_sources for name in self.methods))]
        return tuple(source for source in sources if source in kept)

    def _lines_ranges(self) -> dict[str, Range]:
        return {} if self.lines is None else dict(zip(LINES, self.lines, strict=True))

    def _lines(self, method: Method, parameters: Mapping[str, Any]) -> Lines | None:
        if self.lines is None or "lambda" not in {row.name for row in method.parameters}:
            return None
        alpha, beta = (
            parameters[name] if isinstance(span, tuple) else span
            for name, span in self._lines_ranges().items()
        )
        return Lines(alpha=alpha, beta=beta)

    def _encode_lines(self, recipe: Recipe) -> Parameters:
        used = [rule.lines for rule in recipe.rules if rule.lines is not None]
        lines = used[0] if used else Lines(alpha=1.0, beta=0.0)
        return dict(zip(LINES, (lines.alpha, lines.beta), strict=True))

    def _value(
        self, group: Group, parameter: Parameter, source: str, parameters: Mapping[str, Any]
    ) -> float:
        """A parameter's value in a group: its cell's, or interpolated between two cells'."""
        total = 0.0
        for cell, share in group.cells:
            span = self.ranges(cell, parameter)
            name = _name(cell, parameter, source)
            total += share * (parameters[name] if isinstance(span, tuple) else span)
        if len(group.cells) > 1 and parameter.step is not None:
            total = round(round(total / parameter.step) * parameter.step, 10)
        return total

    def _encode_cell(self, cell: Cell, rule: Rule, used: AbstractSet[str]) -> Parameters:
        """The cell's numbers. used: the sources that are not switched off; where they can be, the
        others need no numbers; else, as those that only this rule lacks, they have the weight 0."""
        encoded: Parameters = {}
        method = METHODS[rule.method]
        known = {parameter.name for parameter in method.parameters}
        for parameter in self._parameters():
            span = self.ranges(cell, parameter)
            if not isinstance(span, tuple):
                continue
            default = min(max(float(parameter.default), span[0]), span[1])
            for source in self.template.sources:
                value: Any = rule.parameters.get(parameter.name, default)
                if parameter.name not in known:
                    value = default
                elif isinstance(value, dict) and (source in value or parameter.shared):
                    value = value.get(source, next(iter(value.values())))
                elif parameter.per_source and source not in rule.sources:
                    absent = method.zero_is_absent and (source in used or not self.switches)
                    value = 0.0 if absent and parameter.name == "weight" else default
                encoded[_name(cell, parameter, source)] = value
        return encoded

    def _parameters(self) -> tuple[Parameter, ...]:
        """The numeric parameters of all methods; one stands for all of a name."""
        named: dict[str, Parameter] = {}
        for method in self.methods:
            for parameter in METHODS[method].parameters:
                if isinstance(parameter.default, bool):
                    continue
                named.setdefault(parameter.name, parameter)
        return tuple(named.values())

    def _names(self, cell: Cell, parameter: Parameter) -> list[str]:
        """Names of a parameter in a cell; several where there is one per source."""
        names = (_name(cell, parameter, source) for source in self.template.sources)
        return list(dict.fromkeys(names))

    def _method_name(self, group: Group) -> str:
        return f"{group.choice}/method" if self.method_per_group else "method"

    def _choice_name(self, group: Group, method: Method) -> str | None:
        """Name of the category that picks a method's operands where it takes only a few."""
        few = method.maximum_sources is not None
        return f"{group.choice}/{method.name}/sources" if few else None

    def _choices(self, group: Group) -> dict[str, dict[str, tuple[str, ...]]]:
        """For every method that takes a few operands: category -> operands."""
        found = {}
        for method in map(METHODS.__getitem__, self.methods):
            name = self._choice_name(group, method)
            if name is not None and method.maximum_sources is not None:
                candidates = combinations((*self.template.sources, BASE), method.maximum_sources)
                found[name] = {"+".join(operands): operands for operands in candidates}
        return found

    @staticmethod
    def _choice(rule: Rule, name: str, operands: dict[str, tuple[str, ...]]) -> str:
        if name.split("/")[-2] != rule.method:
            return next(iter(operands))
        category = "+".join(rule.sources)
        if category not in operands:
            raise NotInSpace(f"{rule.method} of {category} is not in the space")
        return category


def _name(cell: Cell, parameter: Parameter, source: str) -> str:
    own = parameter.per_source and not parameter.shared
    return f"{cell.label}/{parameter.name}/{source}" if own else f"{cell.label}/{parameter.name}"


def _takes_all(rule: Rule) -> bool:
    """Whether the rule's method takes any number of sources; else they are a choice of its own."""
    return METHODS[rule.method].maximum_sources is None


def _switch(source: str) -> str:
    return f"use/{source}"


def _rule_of(group: Group, recipe: Recipe) -> Rule:
    """The one rule of the recipe that covers the whole group; it may cover more."""
    own = group.place.parts or (None if group.place.layers is None else LAYER_PARTS)
    for rule in recipe.rules:
        layers = rule.layers is None or set(group.place.layers or ()) <= set(rule.layers)
        parts = rule.parts is None or (own is not None and set(own) <= set(rule.parts))
        if (
            rule.tensors is None
            and parts
            and layers
            and (rule.layers is None or group.place.layers is not None)
        ):
            return rule
    raise NotInSpace(f"no single rule covers {group.place.label}")


def _same(ours: Rule, theirs: Rule) -> bool:
    """Whether two rules of one group make equal weights; a value left out is the default."""
    if ours.method != theirs.method or ours.sources != theirs.sources:
        return False
    flat = Lines(alpha=1.0, beta=0.0)
    if (ours.lines or flat) != (theirs.lines or flat):
        return False
    for parameter in METHODS[ours.method].parameters:
        value = theirs.parameters.get(parameter.name, parameter.default)
        pairs = zip(
            _per_source(ours.parameters[parameter.name], ours.sources),
            _per_source(value, ours.sources),
            strict=True,
        )
        if not all(math.isclose(first, second, rel_tol=1e-9) for first, second in pairs):
            return False
    return True


def _per_source(value: ParameterValue, sources: tuple[str, ...]) -> list[float]:
    numbers = value if isinstance(value, dict) else dict.fromkeys(sources, float(value))
    return [numbers[source] for source in sources]

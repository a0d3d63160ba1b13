"""The search space of layer stacks: which source's layer stands where, how often, how loud.

Every layer of the base has one place, and one more for each repeat (Akiba et al. 2024, arXiv
2403.13187, section 3.2, search there over such places with one number each). A place is used if its
number is above a threshold that is low for first places and high for repeats, so that what samplers
propose at random is near the plain order; the nearest ones to their threshold give way where the
depth would leave its bounds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from evomerge.methods.derivative import Slopes
from evomerge.recipe import MERGED, Piece, Recipe, Rule
from evomerge.searching.space import NotInSpace, Parameters, Range, ask

Order = Literal["passes", "layers"]
"""Repeats come in further passes over all layers, or each right behind the layer itself."""

FIRST, REPEAT = 0.1, 0.9
"""Numbers above which a layer's first place, and its repeats, are used."""

_RULES = "rules"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a layer may stand."""

    layer: int
    turn: int
    """0: the first time."""

    @property
    def label(self) -> str:
        """Name in a trial's parameters."""
        return f"layer {self.layer}" + (f" repeat {self.turn}" if self.turn else "")

    @property
    def threshold(self) -> float:
        """Number above which it is used."""
        return REPEAT if self.turn else FIRST


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSpace:
    """Every stack that a study may propose; see `Space`."""

    template: Recipe
    """Models, seed and dtype of all recipes."""
    layers: int
    """Of the base."""
    sources: tuple[str, ...]
    """Whose layers may be taken: names of sources, `base`, `merged`."""
    rules: Mapping[str, tuple[Rule, ...]]
    """Name -> rules of a recipe, which make what is not taken from a source; one is chosen."""
    depth: tuple[int, int]
    """Fewest and most layers of a result."""
    repeats: int = 1
    """How often a layer may stand beside its first time."""
    order: Order = "passes"
    scale: Range = 1.0

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods of the rules."""
        used = (rule.method for rules in self.rules.values() for rule in rules)
        return tuple(dict.fromkeys(used))

    def describe(self) -> str:
        """In words, for a terminal."""
        return (
            f"stacks of {self.depth[0]} to {self.depth[1]} layers of {', '.join(self.sources)}, "
            f"each up to {1 + self.repeats} times, in {self.order}; "
            f"the rest from {', '.join(self.rules)}"
        )

    def starts(self) -> dict[str, Recipe]:
        """The plain order of each rules' merge, and the overlap that people stack by hand: the
        first two thirds of the layers, then the last two thirds."""
        found = {}
        if MERGED in self.sources:
            for name, rules in self.rules.items():
                found[f"start {name}"] = replace(self.template, rules=rules)
        third = self.layers // 3
        depth = 2 * (self.layers - third)
        if third and self.depth[0] <= depth <= self.depth[1]:
            halves = (range(self.layers - third), range(third, self.layers))
            pieces = tuple(
                Piece(source=source, layers=tuple(half))
                for source, half in zip((self.sources[0], self.sources[-1]), halves, strict=True)
            )
            rules = next(iter(self.rules.values()))
            found["overlap"] = replace(self.template, rules=rules, stack=pieces)
        return found

    def places(self) -> list[Place]:
        """In the order in which they are stacked."""
        turns, layers = range(1 + self.repeats), range(self.layers)
        if self.order == "passes":
            return [Place(layer=layer, turn=turn) for turn in turns for layer in layers]
        return [Place(layer=layer, turn=turn) for layer in layers for turn in turns]

    def propose(self, trial: optuna.Trial) -> Recipe:
        """Asks the trial for every parameter and makes the recipe of them."""
        return self.recipe(ask(trial, self.distributions()))

    def distributions(self) -> dict[str, BaseDistribution]:
        """Every parameter that samplers see, in a fixed order."""
        found: dict[str, BaseDistribution] = {}
        if len(self.rules) > 1:
            found[_RULES] = CategoricalDistribution(tuple(self.rules))
        for place in self.places():
            found[f"{place.label}/use"] = FloatDistribution(0.0, 1.0)
            if len(self.sources) > 1:
                found[f"{place.label}/source"] = CategoricalDistribution(self.sources)
            if isinstance(self.scale, tuple):
                found[f"{place.label}/scale"] = FloatDistribution(*self.scale)
        return found

    def recipe(self, parameters: Mapping[str, Any]) -> Recipe:
        """The recipe of a full set of parameters."""
        places = self.places()
        margins = [parameters[f"{place.label}/use"] - place.threshold for place in places]
        ranked = sorted(range(len(places)), key=lambda n: -margins[n])  # equal ones by place
        wanted = sum(margin > 0 for margin in margins)
        count = min(max(wanted, self.depth[0]), self.depth[1])
        steps = []
        for number in sorted(ranked[:count]):
            name = places[number].label
            scale = parameters.get(f"{name}/scale", self.scale)
            source = parameters.get(f"{name}/source", self.sources[0])
            steps.append((source, float(scale), places[number].layer))
        rules = self.rules[parameters.get(_RULES, next(iter(self.rules)))]
        return replace(self.template, rules=rules, stack=_pieces(steps))

    def slopes(self, recipe: Recipe, by_rule: Sequence[Slopes]) -> dict[str, float]:
        """None: which layer stands where is no number."""
        return {}

    def encode(self, recipe: Recipe) -> Parameters:
        """Parameters of which `recipe` makes these weights; NotInSpace if there are none.

        A recipe without a stack whose rules are among the space's is the stack in plain order.
        """
        chosen = next((name for name, rules in self.rules.items() if rules == recipe.rules), None)
        if chosen is None:
            raise NotInSpace("its rules are not among the space's")
        steps = _steps(recipe.stack or self._plain(chosen))
        if not self.depth[0] <= len(steps) <= self.depth[1]:
            raise NotInSpace(f"a depth of {len(steps)} is outside the space")
        low, high = self.scale if isinstance(self.scale, tuple) else (self.scale, self.scale)
        for source, scale, layer in steps:
            if source not in self.sources:
                raise NotInSpace(f"layer {layer}: source = {source} is outside the space")
            if not low <= scale <= high:
                raise NotInSpace(f"layer {layer}: scale = {scale:g} is outside the space")
        encoded: Parameters = {_RULES: chosen}
        rest = iter(steps)
        step = next(rest, None)
        for place in self.places():
            used = step is not None and step[2] == place.layer
            source, scale, _ = step if used and step is not None else self._unused()
            encoded[f"{place.label}/use"] = float(used)
            encoded[f"{place.label}/source"] = source
            encoded[f"{place.label}/scale"] = scale
            step = next(rest, None) if used else step
        if step is not None:
            raise NotInSpace(f"layer {step[2]} has no place left")
        return {name: encoded[name] for name in self.distributions()}

    def _plain(self, rules: str) -> tuple[Piece, ...]:
        """The base's own order: of `merged`, or of the model that the rules pass through."""
        source = MERGED if MERGED in self.sources else rules
        return (Piece(source=source, layers=tuple(range(self.layers))),)

    def _unused(self) -> tuple[str, float, int]:
        scale = self.scale
        if isinstance(scale, tuple):
            scale = min(max(1.0, scale[0]), scale[1])
        return self.sources[0], scale, -1


def _steps(stack: Iterable[Piece]) -> list[tuple[str, float, int]]:
    return [(piece.source, piece.scale, layer) for piece in stack for layer in piece.layers]


def _pieces(steps: list[tuple[str, float, int]]) -> tuple[Piece, ...]:
    return tuple(
        Piece(source=source, scale=scale, layers=tuple(layer for *_, layer in group))
        for (source, scale), group in groupby(steps, key=lambda step: step[:2])
    )

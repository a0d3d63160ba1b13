"""From a configuration and opened models to the search space."""

from pathlib import Path

from evomerge.architectures import PARTS, place
from evomerge.config import LoadedConfig, OverrideConfig, StackConfig
from evomerge.config_values import range_of
from evomerge.errors import UserError
from evomerge.merging.models import Models
from evomerge.methods.method import Parameter
from evomerge.recipe import BASE, MERGED, Recipe, Rule
from evomerge.searching.baselines import whole
from evomerge.searching.groups import Cell, make_groups
from evomerge.searching.space import Range, SearchSpace, Space
from evomerge.searching.stacks import StackSpace
from evomerge.searching.starting import fitted, ranked_trials


def space_of(loaded: LoadedConfig, template: Recipe, models: Models) -> Space:
    """The search space that a configuration describes; UserError where the models do not fit it."""
    config = loaded.config.space
    if config.stack is not None:
        return _stack_space(loaded, config.stack, template, models)
    parts: set[str] = {place(name).part for name in models.layout.slots}
    groups = make_groups(*config.cut(), models.stacks.depth, parts)
    for number, override in enumerate(config.overrides):
        cells = [cell for group in groups for cell, _ in group.cells]
        if not any(_within(cell, override) for cell in cells):
            raise UserError(
                f"{loaded.file}: space.overrides.{number}: matches no group; the groups are "
                + ", ".join(dict.fromkeys(cell.label for cell in cells))
            )

    def ranges(cell: Cell, parameter: Parameter) -> Range:
        span = range_of(config.ranges, parameter.name)
        for override in config.overrides:
            if _within(cell, override):
                own = range_of(override.ranges, parameter.name)
                span = span if own is None else own
        if span is not None:
            return span
        return (parameter.low, parameter.high) if parameter.searched else float(parameter.default)

    return SearchSpace(
        template=template,
        groups=groups,
        methods=config.methods,
        method_per_group=config.choose == "group",
        ranges=ranges,
        lines=config.lines,
        switches=config.switch_off,
    )


def _stack_space(
    loaded: LoadedConfig, config: StackConfig, template: Recipe, models: Models
) -> StackSpace:
    layers = models.stacks.depth
    if config.after is None:
        sources = config.sources or tuple(template.sources)
        rules: dict[str, tuple[Rule, ...]] = {
            name: whole(template, "passthrough", (name,)).rules
            for name in (BASE, *template.sources)
        }
    else:
        sources = config.sources or (MERGED,)
        rules = _winners(loaded.folder / config.after, config.winners, template)
    span = config.scale
    return StackSpace(
        template=template,
        layers=layers,
        sources=sources,
        rules=rules,
        depth=config.depth or (layers - layers // 4, layers + layers // 2),
        repeats=config.repeats,
        order=config.order,
        scale=(float(span[0]), float(span[1])) if isinstance(span, list) else float(span),
    )


def _winners(run: Path, count: int, template: Recipe) -> dict[str, tuple[Rule, ...]]:
    """The rules of a run's best trials, by trial; UserError where its models are others."""
    key = "space.stack.after"
    best = [record for record in ranked_trials(run, key) if record.recipe.stack is None]
    starts = {r.name: fitted(r.recipe, template, f"{key}: {run}") for r in best[:count]}
    if not starts or None in starts.values():
        raise UserError(
            f"{key}: {run}: {', '.join(starts) or 'every trial'} cannot be made of this file's "
            "sources; expected those of that search"
        )
    return {name: start.recipe.rules for name, start in starts.items() if start is not None}


def _within(cell: Cell, override: OverrideConfig) -> bool:
    """Whether all of a cell lies within an override's layers and parts."""
    layers = override.layers is None or (
        cell.layers is not None and set(cell.layers) <= set(override.layers)
    )
    parts = override.parts is None or (
        set(cell.parts or (PARTS if cell.layers is None else ())) <= set(override.parts)
        and cell.parts is not None
    )
    return layers and parts

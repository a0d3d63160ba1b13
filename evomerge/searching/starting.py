"""Where a search goes on from: another run's winners or a recipe, told in this search's models."""

from dataclasses import dataclass, replace
from pathlib import Path

from evomerge.errors import UserError
from evomerge.methods import METHODS
from evomerge.recipe import BASE, MERGED, Model, Recipe, Rule
from evomerge.searching.equal_weights import without_absent
from evomerge.searching.finalists import rank
from evomerge.searching.record import TrialRecord, read_trials
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.study import find_study, read_goal


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A recipe to begin with."""

    recipe: Recipe
    """Of this search's models, seed and dtype."""
    notes: tuple[str, ...] = ()
    """How it differs from what it was made of, in words."""


def ranked_trials(run: Path, key: str) -> list[TrialRecord]:
    """A run's complete trials, the best first; UserError, naming the configuration's key, where
    there are none."""
    study = find_study(RunFolder(run).storage_of_run(None))
    if study is None:
        raise UserError(f"{key}: {run} holds no study; expected the output of a search")
    ranked = rank(read_trials(study), read_goal(study.user_attrs))
    if not ranked:
        raise UserError(f"{key}: {run} has no scored trial yet; let it finish one")
    return ranked


def fitted(recipe: Recipe, template: Recipe, where: str) -> Start | None:
    """The recipe in the names of the template's sources, which are told by their hashes.

    A source that the template lacks is left out of the rules; None where too few are left.
    UserError, beginning with `where`, for another base, or another model under the same name.
    """
    if not _same(recipe.base, template.base):
        raise UserError(
            f"{where}: its base is {recipe.base.path}, whose weights are not those of this "
            f"search's base {template.base.path}; expected a search or recipe of the same base"
        )
    rules = [without_absent(rule) for rule in recipe.rules]
    taken = {piece.source for piece in recipe.stack or ()}
    used = {source for rule in rules for source in rule.sources} | taken
    names = {BASE: BASE, MERGED: MERGED} if recipe.stack is not None else {BASE: BASE}
    for name in recipe.sources:
        if name in used and (ours := _name(name, recipe, template, where)) is not None:
            names[name] = ours
    missing = sorted(used - names.keys())
    named = [_named(rule, names) for rule in rules]
    if taken - names.keys() or not all(_enough(rule) for rule in named):
        return None
    stack = recipe.stack
    if stack is not None:
        stack = tuple(replace(piece, source=names[piece.source]) for piece in stack)
    notes = [f"without {', '.join(missing)}, which is no source here"] if missing else []
    masked = any("mask" in METHODS[rule.method].needs for rule in named)
    if masked and (recipe.seed != template.seed or any(k != v for k, v in names.items())):
        notes.append("its random masks are drawn anew")
    if recipe.vocabulary != template.vocabulary:
        notes.append(f"with the vocabulary of this search, {template.vocabulary}")
    if recipe.dtype != template.dtype:
        notes.append(f"in {template.dtype} instead of {recipe.dtype}")
    made = replace(template, rules=tuple(named), stack=stack)
    return Start(recipe=made, notes=tuple(notes))


def _name(name: str, recipe: Recipe, template: Recipe, where: str) -> str | None:
    """What the template calls a source; rather by the same name than by another."""
    known = [name, *template.sources] if name in template.sources else list(template.sources)
    for ours in known:
        if _same(recipe.sources[name], template.sources[ours]):
            return ours
    if name in template.sources:
        raise UserError(
            f"{where}: was made with another model called {name} ({recipe.sources[name].path}, "
            f"sha256 {recipe.sources[name].sha256 or 'not given'}); expected that of this file, "
            f"{template.sources[name].sha256}; call one of the two otherwise"
        )
    return None


def _same(first: Model, second: Model) -> bool:
    if first.sha256 and second.sha256:
        return first.sha256 == second.sha256
    places = [(Path(model.path).resolve(), model.revision) for model in (first, second)]
    return places[0] == places[1]


def _named(rule: Rule, names: dict[str, str]) -> Rule:
    """The rule without the sources that have no name here, the others by their names."""
    parameters = {
        key: {names[source]: number for source, number in value.items() if source in names}
        if isinstance(value, dict)
        else value
        for key, value in rule.parameters.items()
    }
    sources = tuple(names[source] for source in rule.sources if source in names)
    return replace(rule, sources=sources, parameters=parameters)


def _enough(rule: Rule) -> bool:
    return len(rule.sources) >= METHODS[rule.method].minimum_sources

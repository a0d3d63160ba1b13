"""Doors of what people write or are sent as YAML: searches, recipes, mergekit's merges."""

from pathlib import Path
from random import Random
from typing import Any

from evomerge.config import load_config
from evomerge.mergekit.chain import in_order, is_chain
from evomerge.mergekit.evolve import from_evolve
from evomerge.mergekit.reading import read_documents, read_recipe
from evomerge.merging.models import open_models
from evomerge.merging.plan import plan_merge
from evomerge.recipe import Model, Recipe
from tests.fuzz.doors_of_models import sound, text
from tests.fuzz.judging import Files, Link, Pipe
from tests.fuzz.mutating import SCALARS, YAML, spoil, spoil_bytes, written
from tests.fuzz.seeds import BASE, CONFIG, EVOLVE, MERGEKIT, RECIPE, SEARCH, TENSORS

VALUES = (*SCALARS, *YAML, *YAML)


def yaml_of(random: Random, seed: Any) -> Any:
    """A YAML file, spoilt."""
    content = written(spoil(random, seed, VALUES)).encode("utf-8", "surrogatepass")
    chance = random.random()
    if chance < 0.1:
        return spoil_bytes(random, content)
    if chance < 0.11:
        return random.choice(
            (Pipe(), Link("/dev/zero"), Link(".."), b"", b"\xff\xfea", b"- a", b"%")
        )
    return content


class Searches:
    """The configuration of a search."""

    name = "configurations"

    def make(self, random: Random) -> Files:
        seed = {key: own for key, own in SEARCH.items() if key in _ALWAYS or random.random() < 0.4}
        files: dict[str, Any] = {"search.yaml": yaml_of(random, seed)}
        return files | {"text.txt": _TEXT, "documents.jsonl": _LINES, "tasks/x.yaml": _TEXT}

    def enter(self, folder: Path) -> None:
        loaded = load_config(folder / "search.yaml")
        loaded.config.budget.trial_limit()
        loaded.config.space.cut()
        import datetime

        loaded.config.budget.deadline(datetime.datetime(2026, 1, 1))


_ALWAYS = ("base", "sources", "tasks")
_TEXT, _LINES = b"a text\n", b'{"a": 1}\n'


class Recipes:
    """recipe.yaml, planned on a real model where it can be read."""

    name = "recipes"

    def __init__(self) -> None:
        model = Model(path=str(BASE))
        recipe = Recipe(base=model, sources={"a": model, "b": model}, rules=())
        self._models = open_models(recipe)

    def make(self, random: Random) -> Files:
        seed = {key: own for key, own in RECIPE.items() if key in _PARTS or random.random() < 0.4}
        if random.random() < 0.5:  # one that can be planned
            rule = {"method": "ties", "sources": ["a", "b"], "parameters": {"weight": 0.5}}
            own = random.choice((rule, {**RECIPE["rules"][0], "layers": None, "parts": None}))
            seed["rules"] = [{key: value for key, value in own.items() if value is not None}]
        return {"recipe.yaml": yaml_of(random, seed)}

    def enter(self, folder: Path) -> None:
        recipe = read_recipe(folder / "recipe.yaml")
        recipe.fingerprint()
        Recipe.from_yaml(recipe.to_yaml())
        plan_merge(recipe, self._models)


_PARTS = ("base", "sources", "rules")


class Merges:
    """mergekit's YAML: one merge, several in a file, and the searches of mergekit-evolve."""

    name = "mergekit"

    def make(self, random: Random) -> Files:
        files: dict[str, Any] = {f"{name}/config.json": _CONFIG for name in ("base", "a", "b")}
        files |= {f"{name}/model.safetensors": _WEIGHTS for name in ("base", "a", "b")}
        if random.random() < 0.2:
            return {**files, "evolve.yaml": yaml_of(random, EVOLVE)}
        if random.random() < 0.2:
            two = [{**random.choice(MERGEKIT), "name": "x"}, random.choice(MERGEKIT)]
            content = "\n---\n".join(written(spoil(random, each, VALUES)) for each in two)
            return {**files, "merge.yaml": content.encode("utf-8", "surrogatepass")}
        return {**files, "merge.yaml": yaml_of(random, random.choice(MERGEKIT))}

    def enter(self, folder: Path) -> None:
        if (folder / "evolve.yaml").exists():
            from_evolve(folder / "evolve.yaml")
        elif is_chain(folder / "merge.yaml"):
            in_order(read_documents(folder / "merge.yaml"))
        else:
            read_recipe(folder / "merge.yaml").fingerprint()


_CONFIG, _WEIGHTS = text(CONFIG), sound(TENSORS)

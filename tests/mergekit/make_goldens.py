"""Makes goldens.json and goldens.safetensors with the reference, mergekit 0.1.5, which lives in a
virtual environment of its own (`pip install torch==2.13.0 mergekit==0.1.5`):

    python -m tests.mergekit.make_goldens PYTHON_WITH_MERGEKIT

Every merge of cases.yaml is made from its own words and from those that evomerge writes for it;
every recipe of recipes.yaml from what evomerge writes.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import UserError
from evomerge.mergekit.reading import from_mergekit
from evomerge.mergekit.writing import to_mergekit
from evomerge.recipe import Recipe
from tests.mergekit.goldens import cases, chains, in_float32, write_goldens
from tests.mergekit.reference import run_reference
from tests.mergekit.sources import located, make_sources, without_folder


def main(python: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sources, work = Path(folder) / "sources", Path(folder) / "work"
        work.mkdir()
        make_sources(sources)
        facts: dict[str, Any] = {"origin": "mergekit 0.1.5, float32; see make_goldens.py"}
        texts: dict[str, str] = {}
        facts["read"], facts["written"] = {}, {}
        for name, content in cases("cases.yaml").items():
            facts["read"][name] = in_float32(content)
            texts[f"read/{name}"] = yaml.safe_dump(in_float32(content))
            recipe = from_mergekit(in_float32(content), sources)
            facts["written"][name] = _written(recipe, sources)
        for name, mapping in cases("recipes.yaml").items():
            recipe = located(Recipe.from_mapping(mapping, name), sources)
            facts["written"][name] = _written(recipe, sources)
        texts |= {f"written/{n}": t for n, t in facts["written"].items() if t is not None}
        texts |= {f"chain/{n}": yaml.safe_dump_all(each) for n, each in chains().items()}
        made = run_reference(python, texts, sources, work)
        if failed := {name: each for name, each in made.items() if isinstance(each, str)}:
            raise SystemExit("\n".join(f"{name}: {error}" for name, error in failed.items()))
        write_goldens(facts, made)  # type: ignore[arg-type]


def _written(recipe: Recipe, sources: Path) -> str | None:
    """mergekit's words for the recipe, without the sources' folder; None where it has none."""
    try:
        return without_folder(to_mergekit(recipe), sources)
    except UserError as error:
        print(error)
        return None


if __name__ == "__main__":
    main(sys.argv[1])

"""All doors by name."""

from collections.abc import Callable
from pathlib import Path

from tests.fuzz.doors_of_models import Adapters, Checkpoints, Gguf, Models, Tokenizers
from tests.fuzz.doors_of_runs import Addresses, Journals, Reports, RunFiles
from tests.fuzz.doors_of_tasks import Lines, Tasks
from tests.fuzz.doors_of_yaml import Merges, Recipes, Searches
from tests.fuzz.judging import Door

DOORS: dict[str, Callable[[Path], Door]] = {
    "checkpoints": lambda run: Checkpoints(),
    "adapters": lambda run: Adapters(),
    "gguf": lambda run: Gguf(),
    "models": lambda run: Models(),
    "tokenizers": lambda run: Tokenizers(),
    "configurations": lambda run: Searches(),
    "recipes": lambda run: Recipes(),
    "mergekit": lambda run: Merges(),
    "tasks": lambda run: Tasks(),
    "documents": lambda run: Lines(),
    "addresses": lambda run: Addresses(run.parent),
    "journals": Journals,
    "reports": Reports,
    "run_files": RunFiles,
}
"""Name -> makes the door, given a sound run in a folder named `night`."""

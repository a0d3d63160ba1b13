"""evomerge finds the best merge of fine-tuned language models.

    from evomerge import load_config, search, export

    outcome = search(load_config("configs/quickstart.yaml"))
    export(outcome.folder, "winner")

The names below are the public interface; they are loaded when first used, because torch and
transformers take seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.config import load_config
    from evomerge.errors import CandidateError, EvomergeError, SearchError, UserError
    from evomerge.exporting import export, merge
    from evomerge.recipe import Recipe
    from evomerge.report import read_run
    from evomerge.verbs import score, search

__all__ = [
    "CandidateError",
    "EvomergeError",
    "Recipe",
    "SearchError",
    "UserError",
    "export",
    "load_config",
    "merge",
    "read_run",
    "score",
    "search",
]

_ROOMS = {
    "CandidateError": "errors",
    "EvomergeError": "errors",
    "Recipe": "recipe",
    "SearchError": "errors",
    "UserError": "errors",
    "export": "exporting",
    "load_config": "config",
    "merge": "exporting",
    "read_run": "report",
    "score": "verbs",
    "search": "verbs",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"evomerge.{_ROOMS[name]}"), name)

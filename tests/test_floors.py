"""A room imports only from rooms below it, and third parties enter by their own doors."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "evomerge"

FLOORS = [
    {"errors", "seeding", "files", "typed_yaml", "environment", "devices", "aligned", "notify"},
    {"methods", "architectures", "recipe"},
    {"checkpoints"},
    {"merging"},
    {"scoring"},
    {"searching"},
    {
        *("exporting", "adapting", "report", "documents", "run_picture", "model_card"),
        *("front_picture", "evaluator", "frames", "ending"),
    },
    {
        "config",
        "config_objectives",
        "config_tasks",
        "config_values",
        "starter",
        "inspection",
        "mergekit",
    },
    {
        "assemble",
        "identity",
        "template",
        "going_on",
        "scorers",
        "spaces",
        "describe",
        "describe_front",
        "inspection_picture",
        "checking",
        "live_view",
        "trial_table",
        "watching",
        "dashboard",
    },
    {"session", "run_log"},
    {"beginning", "working"},
    {"workers"},
    {"verbs", "terminal"},
    {"cli"},
    {"__init__", "__main__"},
]
BESIDE = {
    ("exporting", "model_card"),
    ("adapting", "model_card"),
    ("run_picture", "front_picture"),
    ("run_picture", "report"),
    ("report", "frames"),
    ("documents", "report"),
    ("adapting", "exporting"),
    ("mergekit", "starter"),
    ("assemble", "scorers"),
    ("describe", "describe_front"),
    ("assemble", "spaces"),
    ("assemble", "template"),
    ("identity", "assemble"),
    ("identity", "scorers"),
    ("going_on", "identity"),
    ("checking", "assemble"),
    ("checking", "scorers"),
    ("watching", "describe"),
    ("config", "config_objectives"),
    ("config_objectives", "config_tasks"),
    ("going_on", "assemble"),
    ("config", "config_tasks"),
    ("config", "config_values"),
}
"""Rooms of one floor that may know each other: the first knows the second."""
INSIDE_FLOOR_ZERO = {("files", "errors"), ("typed_yaml", "errors"), ("typed_yaml", "files")}
UP = {("describe", "checking"), ("frames", "report")}
"""Types only, under TYPE_CHECKING."""

DOORS = {
    "lm_eval": {
        *("scoring/harness.py", "scoring/loading.py", "scoring/language_model.py"),
        *(
            "scoring/encoding.py",
            "scoring/kept_requests.py",
            "scoring/task_names.py",
            "scoring/task_safety.py",
            "scoring/sandbox.py",
        ),
    },
    "optuna": {
        *("searching", "dashboard", "verbs.py", "checking.py", "ending.py"),
        *("going_on.py", "terminal.py", "session.py", "working.py", "workers"),
    },
    "transformers": {"checkpoints", "merging", "scoring", "terminal.py"},
    "safetensors": {"checkpoints"},
    "gguf": {"checkpoints"},
    "vllm": {"scoring/vllm_generation.py"},
    "matplotlib": {"run_picture.py", "front_picture.py", "inspection_picture.py"},
    "typer": {"cli.py", "terminal.py"},
    "tenacity": {"searching/patience.py"},
    "grpc": {"searching/storage.py"},
    "ray": {"workers"},
}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


FILES = sorted(PACKAGE.rglob("*.py"))


def test_the_package_was_found() -> None:
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = room(path)
    for module in imports(path):
        if not module.startswith("evomerge."):
            continue
        other = module.split(".")[1]
        if other == own or (own, other) in BESIDE | INSIDE_FLOOR_ZERO | UP:
            continue
        assert floor(other) < floor(own), f"{path.name} imports {module}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_third_parties_have_one_door(path: Path) -> None:
    inside = str(path.relative_to(PACKAGE))
    for module in imports(path):
        doors = DOORS.get(module.split(".")[0])
        if doors is not None:
            assert any(inside == door or inside.startswith(f"{door}/") for door in doors), (
                f"{inside} imports {module}"
            )


def test_recipe_imports_neither_torch_nor_optuna() -> None:
    assert not {"torch", "optuna"} & set(imports(PACKAGE / "recipe.py"))

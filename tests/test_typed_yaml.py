"""YAML from others: nothing of it runs, and little of it cannot become much."""

import os
from pathlib import Path

import pytest

from evomerge import load_config
from evomerge.errors import UserError, did_you_mean
from evomerge.mergekit.evolve import from_evolve
from evomerge.mergekit.reading import from_mergekit, read_documents, read_recipe
from evomerge.recipe import Recipe, parse_sequence
from evomerge.starter import source_names
from evomerge.typed_yaml import safe_documents

BOMB = "[&a0 [x,x,x,x,x,x,x,x], " + ", ".join(
    f"&a{n} [{','.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('!!python/object/apply:os.system ["touch pwned"]', "is not YAML"),
        ("!!python/name:os.system x", "is not YAML"),
        ("!function evil.run", "is not YAML"),
        (BOMB + "]", "too large"),
        ("&a [*a]", r"too large|is not YAML"),
        ("[" * 10_000, "is not YAML"),
        ("[" * 150 + "]" * 150, "too large"),
        ("2020-99-99", "none of its kind"),
        ("!!int x", "none of its kind"),
        ("!!bool x", "none of its kind"),
        ("!!timestamp x", "none of its kind"),
        ("0x" + "f" * 4000, "a number of 4002 digits"),
        ("1" + "0" * 5000, "a number of 5001 digits"),
        ("!!set {a, b}", "set: expected plain values"),
        ("!!binary eHg=", "binary: expected plain values"),
        ("a: \x00", "is not YAML"),
        ("{[1, 2]: 3}", "is not YAML"),
    ],
)
def test_hostile_values_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        safe_documents(text, "x.yaml")
    assert not Path("pwned").exists()


def test_some_aliases_are_read() -> None:
    ((_, content),) = safe_documents("a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a, y: 2}", "x.yaml")
    assert content == {"a": {"x": 1}, "b": [{"x": 1}] * 2, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize("key", ["? [a]\n: 1", "? {a: 1}\n: 1"])
def test_keys_that_are_no_names(key: str) -> None:
    with pytest.raises(UserError, match=r"is not YAML|expected a name"):
        Recipe.from_yaml(key)


def test_many_mistakes_are_told_in_part() -> None:
    text = "base: {path: x}\nsources: {}\nrules: []\n" + "\n".join(f"k{n}: 1" for n in range(500))
    with pytest.raises(UserError, match="and 470 more") as refused:
        Recipe.from_yaml(text)
    assert len(str(refused.value)) < 10_000


def test_two_documents_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds 2 YAML documents"):
        Recipe.from_yaml("a: 1\n---\nb: 2")


@pytest.mark.parametrize("name", ["pipe", "folder", "zero"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.yaml"
    if name == "pipe":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    for read in (load_config, Recipe.read, read_recipe, from_evolve):
        with pytest.raises(UserError, match="cannot be read"):
            read(path)
    assert read_documents(path) == []


@pytest.mark.parametrize("layers", ["0-9999999", ["0-9000", "0-9000"], "0-9999,0-9999"])
def test_layers_of_no_model(layers: object) -> None:
    with pytest.raises(ValueError, match="at most 10000 layers"):
        parse_sequence(layers)


def test_names_too_long_to_compare_are_not_compared() -> None:
    names = [f"{'a' * 100_000}{n}" for n in range(20)]
    assert "did you mean" not in did_you_mean("b" * 100_000, names)
    assert did_you_mean("x", map(str, range(2000))).endswith("and 1500 more")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("budget", "{hours: .inf}", "budget.hours"),
        ("budget", "{hours: 1e300}", "budget.hours"),
        ("budget", "{trials: 1" + "0" * 90 + "}", "budget.trials"),
        ("seed", "-1", "seed"),
        ("seed", "4294967296", "seed"),
        ("tasks", "{t: {weight: .inf}}", "tasks.t.weight"),
        ("constraints", "{t: {at_least: .nan}}", "constraints.t.at_least"),
        ("space", "{methods: [[a]]}", "unknown method"),
        ("space", "{parts: [[1, mlp]]}", "expected together"),
        ("start_from", '"x\\0"', "is not there"),
        ("start_from", "x" * 5000, "is not there"),
        ("calibration", '{file: "x\\0"}', "is no file"),
    ],
)
def test_values_of_a_search_that_fail_later(
    tmp_path: Path, key: str, value: str, message: str
) -> None:
    lines = {"base": "b", "sources": "{a: x}", "tasks": "{t: {}}", key: value}
    path = tmp_path / "search.yaml"
    path.write_text("\n".join(f"{name}: {own}" for name, own in lines.items()))
    with pytest.raises(UserError, match=message):
        load_config(path)


def test_paths_of_a_recipe_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f'base: {{path: "x\\0"}}\nsources: {{a: {{path: {"x" * 5000}}}}}\nrules: []\n')
    assert Recipe.read(path).base.path == "x\x00"


LINEAR = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": "a"}, "models: "),
        ({"models": []}, "has no models"),
        ({"models": [{"model": 1.5}]}, "models.0.model"),
        ({"models": [{}]}, "models.0.model: is missing"),
        ({"models": [{"model": {"model": {"x": 1}}}]}, "models.0.model"),
        ({"models": [{"model": "a", "parameters": {"weight": []}}]}, "parameters.weight"),
        ({"models": [{"model": "a", "parameters": {"weight": [1, {}]}}]}, "parameters.weight"),
        ({"parameters": {"weight": {"filter": "x"}}}, "parameters.weight"),
        ({"parameters": {"weight": float("nan")}}, "parameters.weight"),
        ({"parameters": {"weight": 10**400}}, "parameters.weight"),
        ({"parameters": 3}, "parameters"),
        ({"modules": {"x": 3}}, "modules.x"),
        ({"dtype": ["x"]}, "dtype"),
        ({"tokenizer": "base"}, "tokenizer"),
        ({1: 2}, "not understood"),
    ],
)
def test_a_merge_of_mergekit_with_other_types(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_mergekit({**LINEAR, **changes})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "text",
    [
        "genome: 3",
        "genome: {models: [1.5], merge_method: linear}\ntasks: [{name: x}]",
        "genome: {models: [a], merge_method: linear}\ntasks: [{weight: 1}]",
        "genome: {models: [a], merge_method: linear}\ntasks: [{name: x, weight: null}]",
        "genome: {models: [a], merge_method: linear}\ntasks: abc",
        f"genome: {{models: [{'x' * 5000}], merge_method: [linear]}}\ntasks: [{{name: x}}]",
    ],
)
def test_a_search_of_mergekit_with_other_types(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml: "):
        from_evolve(tmp_path / "x.yaml")


def test_names_from_paths_stay_names() -> None:
    assert source_names(["..", "a/..", ".", ".hidden", "x" * 5000]) == [
        *("source", "source_2", "source_3", "hidden", "x" * 100)
    ]

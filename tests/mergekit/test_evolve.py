"""Configurations of mergekit-evolve become searches that load, and say what changes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.config import load_config
from evomerge.errors import UserError
from evomerge.mergekit.evolve import from_evolve
from evomerge.searching.groups import Blocks, Knots
from evomerge.verbs import check

FAMILY = Path(__file__).parents[2] / "configs" / "quickstart"

# The form that mergekit-evolve's documentation shows, with its commented options.
DOCUMENTED = """\
genome:
    models:
       - model_1
       - model_2
       - model_n

    merge_method: dare_ties
    base_model: base_model_if_needed
    tokenizer_source: null # optional
    layer_granularity: 8

    # optional:
    normalize: false
    allow_negative_weights: false
    smooth: false
    filters:
      - self_attn
      - mlp
tasks:
  - name: lm_eval_task_name
    weight: 1.0 # optional
    metric: "acc,none" # defaults to acc,none
  - name: another
"""

# Others of the shapes that its users write: hub ids, few-shot tasks, answer filters.
USUAL = {
    "slerp": """\
genome:
  models: [owner/instruct-7b, owner/math-7b]
  merge_method: slerp
  base_model: owner/instruct-7b
  layer_granularity: 4
  allow_negative_weights: false
tasks:
  - {name: gsm8k, metric: "exact_match,strict-match"}
limit: 100
num_fewshot: 5
apply_chat_template: false
""",
    "linear": """\
genome:
  models: [owner/a-7b, owner/b-7b, owner/c-7b]
  merge_method: linear
  layer_granularity: 1
  normalize: true
tasks:
  - {name: wikitext, weight: -0.5, metric: "word_perplexity,none"}
  - {name: arc_easy, metric: "acc_norm,none"}
shuffle: true
""",
    "task_arithmetic": """\
genome:
  models: [owner/a-7b, "owner/b-7b@v1"]
  base_model: owner/base-7b
  merge_method: task_arithmetic
  layer_granularity: 6
  allow_negative_weights: true
  smooth: true
  filters: [mlp, lm_head, q_proj]
  tokenizer_source: union
tasks:
  - name: hellaswag
""",
    "ties": """\
genome:
  models: [owner/base-7b, owner/a-7b]
  base_model: owner/base-7b
  merge_method: ties
tasks:
  - name: hellaswag
random_init: true
""",
}


def converted(text: str, folder: Path) -> tuple[dict[str, Any], str]:
    """(the configuration, its text); it must load."""
    path = folder / "evolve.yml"
    path.write_text(text)
    made = from_evolve(path)
    out = folder / "search.yaml"
    out.write_text(made)
    assert load_config(out).config.base.path
    assert all(len(line) <= 100 for line in made.splitlines())
    comments = " ".join(made.replace("#", " ").split())
    return yaml.safe_load(made), comments


def test_the_documented_form(tmp_path: Path) -> None:
    config, comments = converted(DOCUMENTED, tmp_path)
    assert config["base"] == "base_model_if_needed"
    assert list(config["sources"]) == ["model_1", "model_2", "model_n"]
    assert config["space"] == {
        "methods": ["dare_ties"],
        "depth": {"blocks": 8},
        "parts": [["attention"], ["mlp"], ["norm"]],
    }
    task = {"metric": "acc", "filter": "none", "chat_template": True}
    assert config["tasks"] == {"lm_eval_task_name": task, "another": task}
    assert config["sampler"] == "cma_es"
    assert config["budget"] == {"trials": 100}
    for words in (
        "half of the documents is held out",
        "filters become parts: self_attn -> attention, mlp -> mlp",
        "density is one number for all models",
        "need `folder:`",
    ):
        assert words in comments


def test_slerp_of_a_pair(tmp_path: Path) -> None:
    config, comments = converted(USUAL["slerp"], tmp_path)
    assert config["base"] == "owner/instruct-7b"
    assert config["sources"] == {"math-7b": "owner/math-7b"}
    assert config["sampler"] == "auto"
    assert config["tasks"]["gsm8k"] == {
        "metric": "exact_match",
        "filter": "strict-match",
        "num_fewshot": 5,
        "limit": 200,
    }
    assert "limit is doubled" in comments


def test_linear_sums_all_models(tmp_path: Path) -> None:
    config, comments = converted(USUAL["linear"], tmp_path)
    assert config["base"] == "owner/a-7b"
    assert list(config["sources"].values()) == ["owner/a-7b", "owner/b-7b", "owner/c-7b"]
    assert config["space"] == {"methods": ["linear"], "depth": "layers"}
    assert config["tasks"]["wikitext"]["weight"] == 0.5
    assert "enters negated by itself" in comments
    assert "shuffle is left out" in comments
    assert "normalize" not in comments


def test_options_of_task_vectors(tmp_path: Path) -> None:
    config, comments = converted(USUAL["task_arithmetic"], tmp_path)
    assert config["space"] == {
        "methods": ["task_arithmetic"],
        "depth": {"knots": 4},
        "parts": [["mlp"], ["attention", "norm"]],
        "ends": "separate",
        "ranges": {"weight": [-0.5, 1.2]},
    }
    assert config["sources"]["b-7b"] == "owner/b-7b@v1"
    assert config["vocabulary"] == "union"
    for words in ("set them to layers / 6", "q_proj left out"):
        assert words in comments
    config, comments = converted(USUAL["ties"], tmp_path)
    assert config["space"] == {"methods": ["ties"], "depth": "global"}
    assert list(config["sources"]) == ["a-7b"]
    assert "random_init is left out" in comments


LOCAL = f"""\
genome:
  models: [{FAMILY}/models/dial, {FAMILY}/models/past]
  base_model: {FAMILY}/models/base
  merge_method: METHOD
  layer_granularity: 2
  smooth: SMOOTH
  filters: [self_attn, mlp]
tasks:
  - {{name: dial, metric: "exact_match,none"}}
limit: 8
"""


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties"])
@pytest.mark.parametrize("smooth", ["true", "false"])
def test_local_models_can_be_searched_at_once(method: str, smooth: str, tmp_path: Path) -> None:
    text = LOCAL.replace("METHOD", method).replace("SMOOTH", smooth)
    _, comments = converted(text, tmp_path)
    assert "the base's tokenizer has no chat template" in comments
    out = tmp_path / "search.yaml"
    content = yaml.safe_load(out.read_text())
    content["tasks"]["dial"]["folder"] = str(FAMILY / "tasks")  # as the comment says
    content |= {"dtype": "float32", "threads": 1, "output": str(tmp_path / "run")}
    out.write_text(yaml.safe_dump(content))
    loaded = load_config(out)
    assert loaded.config.space.depth == (Knots(count=2) if smooth == "true" else Blocks(size=2))
    found = check(loaded, probe=False)
    assert found.sampler[0] == "cma_es"
    assert found.parameters > 0


MISTAKES = {
    "no genome": ("tasks: [{name: a}]", "expected the keys genome and tasks"),
    "no tasks": ("genome: {models: [a], merge_method: linear}", "tasks: expected a list"),
    "an unknown key": (USUAL["ties"] + "budget: 3\n", "budget: not understood"),
    "an unknown gene": (USUAL["ties"].replace("models:", "model:"), "genome.model: not understood"),
    "no models": (USUAL["ties"].replace("[owner/base-7b, owner/a-7b]", "[]"), "models: is missing"),
    "another method": (USUAL["ties"].replace("ties", "sce"), "expected one of mergekit-evolve's"),
    "no base": (USUAL["ties"].replace("  base_model: owner/base-7b\n", ""), "ties needs it"),
    "three for slerp": (USUAL["linear"].replace("linear", "slerp"), "slerp takes 2"),
    "another tokenizer": (USUAL["task_arithmetic"].replace("union", "owner/c"), "base, union, or"),
    "no weight": (USUAL["linear"].replace("-0.5", "0"), "leave the task out"),
    "another task key": (
        USUAL["ties"].replace("- name", "- task"),
        r"tasks.0.task: not understood",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str, tmp_path: Path) -> None:
    text, words = MISTAKES[mistake]
    path = tmp_path / "evolve.yml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        from_evolve(path)

"""mergekit-evolve's YAML as a search configuration, with what changes said in comments."""

from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import UserError
from evomerge.methods import look_up
from evomerge.starter import source_names

_PARTS = {"self_attn": "attention", "attn": "attention", "mlp": "mlp", "norm": "norm"}
_GENOME = (
    *("models", "merge_method", "base_model", "layer_granularity", "normalize", "filters"),
    *("allow_negative_weights", "smooth", "tokenizer_source"),
)
_TOP = (
    *("genome", "tasks", "limit", "num_fewshot", "shuffle", "random_init"),
    *("apply_chat_template", "fewshot_as_multiturn"),
)


def from_evolve(path: Path) -> str:
    """A search configuration, as text; UserError where the file is not one of mergekit-evolve."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("genome"), dict):
        raise UserError(f"{path}: expected the keys genome and tasks of mergekit-evolve")
    genome: dict[str, Any] = content["genome"]
    for given, known in ((content, _TOP), (genome, _GENOME)):
        if unknown := [key for key in given if key not in known]:
            raise UserError(f"{path}: {unknown[0]}: not understood; known: {', '.join(known)}")
    method = look_up(genome["merge_method"])
    models = [str(model) for model in genome["models"]]
    base = str(genome.get("base_model") or models[0])
    sources = [model for model in models if model != base]
    config: dict[str, Any] = {
        "base": base,
        "sources": dict(zip(source_names(sources), sources, strict=True)),
        "tasks": {task["name"]: _task(task, content) for task in content["tasks"]},
        "space": _space(method.name, genome),
        "sampler": "cma_es",
        "budget": {"hours": 8},
        "documents": {"holdout": 0.5},
    }
    comments = [f"# {line}" for line in _changes(genome, content)]
    return "\n".join([*comments, yaml.safe_dump(config, sort_keys=False)])


def _task(task: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    metric = str(task.get("metric", "acc,none"))
    name, _, chosen = metric.partition(",")
    found: dict[str, Any] = {"metric": name}
    if chosen not in ("", "none"):
        found["filter"] = chosen
    if task.get("weight", 1.0) != 1.0:
        found["weight"] = float(task["weight"])
    shots = task.get("num_fewshot", content.get("num_fewshot"))
    if shots is not None:
        found["num_fewshot"] = int(shots)
    if content.get("limit"):
        found["limit"] = 2 * int(content["limit"])
    if content.get("apply_chat_template"):
        found["chat_template"] = True
    return found


def _space(method: str, genome: dict[str, Any]) -> dict[str, Any]:
    granularity = int(genome.get("layer_granularity") or 0)
    depth: Any = {"blocks": granularity} if granularity else "global"
    if granularity == 1:
        depth = "layers"
    if genome.get("smooth") and granularity:
        depth = {"knots": 4}
    space: dict[str, Any] = {"methods": [method], "depth": depth}
    filters = [each for each in genome.get("filters") or [] if each not in ("*", None)]
    if filters:
        space["parts"] = "separate"
    if genome.get("allow_negative_weights"):
        space["ranges"] = {"weight": [-0.5, 1.2]}
    return space


def _changes(genome: dict[str, Any], content: dict[str, Any]) -> list[str]:
    lines = [
        "Made from a configuration of mergekit-evolve. What changes:",
        "- half of the documents is held out for the verdict; limit is doubled accordingly"
        if content.get("limit")
        else "- half of the documents is held out for the verdict",
        "- there is a budget (8 hours here; trials or a clock time are possible), and the same",
        "  command resumes; baselines are scored first; a failed candidate costs one trial",
        "- random masks of DARE are the same in the search and in the export",
        "- CMA-ES starts at the best baseline, not at equal weights with sigma 1/6",
    ]
    if filters := [each for each in genome.get("filters") or [] if each not in ("*", None)]:
        told = ", ".join(f"{each} -> {_PARTS.get(str(each), 'no such part')}" for each in filters)
        lines.append(f"- filters become parts, all of attention, mlp and norm apart ({told})")
    if genome.get("smooth"):
        lines.append("- smooth becomes knots: values interpolated over the depth")
    if genome.get("normalize"):
        lines.append("- normalize is the method's own default (configs/METHODS.md)")
    if genome.get("tokenizer_source"):
        lines.append("- tokenizer_source is left out: the base's tokenizer is used")
    for key in ("shuffle", "random_init", "fewshot_as_multiturn"):
        if content.get(key):
            lines.append(f"- {key} is left out")
    return lines

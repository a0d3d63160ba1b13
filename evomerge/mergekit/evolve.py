"""mergekit-evolve's YAML as a search configuration, with what changes said in comments."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evomerge.checkpoints.source import read_json
from evomerge.errors import UserError
from evomerge.files import is_there, read_text
from evomerge.mergekit.correspondence import WITHOUT_BASE
from evomerge.mergekit.reading import model_path
from evomerge.mergekit.shape import check_evolve
from evomerge.methods import look_up
from evomerge.recipe import BASE, UNION
from evomerge.starter import source_names
from evomerge.typed_yaml import safe_documents

_METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_ties")
_PARTS = {
    **{"self_attn": "attention", "attn": "attention", "attention": "attention"},
    **{"mlp": "mlp", "norm": "norm", "layernorm": "norm"},
}
_LAYER_PARTS = ("attention", "mlp", "norm")
_ENDS = ("lm_head", "embed_tokens", "embed", "model.norm")
_GENOME = (
    *("models", "merge_method", "base_model", "layer_granularity", "normalize", "filters"),
    *("allow_negative_weights", "smooth", "tokenizer_source"),
)
_TASK = ("name", "metric", "weight")
_TOP = (
    *("genome", "tasks", "limit", "num_fewshot", "shuffle", "random_init"),
    *("apply_chat_template", "fewshot_as_multiturn"),
)
_KNOTS = 4  # where the number of layers is not known

Content = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conversion:
    """What is being made: the configuration's keys, and what its reader is told."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)


def from_evolve(path: Path) -> str:
    """A search configuration, as text; UserError where the file is not one of mergekit-evolve.

    Local models are written with absolute paths; they count from the file or the working folder.
    """
    try:
        documents = safe_documents(read_text(path), str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    content: Any = documents[0][1] if documents else None
    try:
        _check(content)
        made = _Conversion(folder=path.parent)
        _convert(content, made)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    comments = [f"# {line}" for line in _head(path, made.changes)]
    return "\n".join([*comments, "", yaml.safe_dump(made.config, sort_keys=False, width=100)])


def _check(content: Any) -> None:
    if not isinstance(content, Mapping) or not isinstance(content.get("genome"), Mapping):
        raise UserError("expected the keys genome and tasks of mergekit-evolve")
    tasks = content.get("tasks")
    if not isinstance(tasks, Sequence) or not tasks:
        raise UserError("tasks: expected a list of lm-eval tasks, each with its name")
    genome = content["genome"]
    if isinstance(tasks, str):
        raise UserError(f"tasks: {tasks!r:.80}; expected a list of lm-eval tasks")
    places = [("", content, _TOP), ("genome.", genome, _GENOME)]
    places += [(f"tasks.{number}.", task, _TASK) for number, task in enumerate(tasks)]
    for where, given, known in places:
        if not isinstance(given, Mapping):
            raise UserError(f"{where.rstrip('.')}: {given!r}; expected a mapping")
        if unknown := [key for key in given if key not in known]:
            raise UserError(f"{where}{unknown[0]}: not understood; known: {', '.join(known)}")
    for where, given, key in [("genome.", genome, "models"), ("genome.", genome, "merge_method")]:
        if not given.get(key):
            raise UserError(f"{where}{key}: is missing")
    check_evolve(content)
    if genome["merge_method"] not in _METHODS:
        raise UserError(
            f"genome.merge_method: {genome['merge_method']}; expected one of mergekit-evolve's: "
            f"{', '.join(_METHODS)}"
        )


def _convert(content: Content, made: _Conversion) -> None:
    genome: Content = content["genome"]
    base = _models(genome, made)
    made.config["tasks"] = {
        task["name"]: _task(task, content, base, made) for task in content["tasks"]
    }
    made.config["space"] = _space(genome, base, made)
    # CMA-ES proposes numbers alone; slerp's pair is a category.
    made.config["sampler"] = "auto" if genome["merge_method"] == "slerp" else "cma_es"
    made.config["budget"] = {"trials": 100}
    made.config["documents"] = {"holdout": 0.5}
    if content.get("limit"):
        made.changes.append("limit is doubled, so that the search sees as many documents as before")
    if content.get("shuffle"):
        made.changes.append(
            "shuffle is left out: a hash chooses the documents, once for all trials"
        )
    if content.get("random_init"):
        made.changes.append("random_init is left out: the search starts at the best baseline")


def _models(genome: Content, made: _Conversion) -> Path | str:
    """Writes base and sources; returns the base, a folder where it is one here."""
    method = look_up(genome["merge_method"]).name
    given = genome.get("base_model")
    base = None if given is None else model_path(given, None)
    models = list(dict.fromkeys(model_path(model, base) for model in genome["models"]))
    if base is None and method not in WITHOUT_BASE:
        raise UserError(f"genome.base_model: is missing; {method} needs it")
    if method == "linear":
        # There, every model enters the sum, the base among them; here, every source.
        sources = models if base is None or base in models else [*models, base]
    else:
        sources = [model for model in models if model != (base or models[0])]
    base = base or models[0]
    if method == "slerp" and len(sources) != 1:
        raise UserError(
            f"genome.models: {len(sources) + 1} models; slerp takes 2, one of them base"
        )
    made.config["base"] = _located(base, made.folder)
    made.config["sources"] = {
        name: _located(source, made.folder)
        for name, source in zip(source_names(sources), sources, strict=True)
    }
    asked = genome.get("tokenizer_source") or BASE
    names = dict(zip(sources, made.config["sources"], strict=True))
    names |= {UNION: UNION, base: BASE, BASE: BASE}
    if asked not in names:
        raise UserError(f"genome.tokenizer_source: {asked}; expected base, union, or a model")
    if names[asked] != BASE:
        made.config["vocabulary"] = names[asked]
    return _located(base, made.folder)


def _located(model: str, folder: Path) -> str:
    paths = [folder / model]
    with suppress(RuntimeError):  # of an unknown ~user
        paths.append(Path(model).expanduser())
    local = [each for each in paths if is_there(each)]
    return str(local[0].resolve()) if local else model


def _task(task: Content, content: Content, base: Path | str, made: _Conversion) -> dict[str, Any]:
    name, _, chosen = str(task.get("metric", "acc,none")).partition(",")
    found: dict[str, Any] = {"metric": name}
    if chosen:
        found["filter"] = chosen
    weight = float(task.get("weight", 1.0))
    if weight == 0:
        raise UserError(f"tasks: {task['name']}: weight 0; leave the task out")
    if weight < 0:
        made.changes.append(
            f"{task['name']}: weight {weight:g} becomes {-weight:g}: where less is better, the "
            "value enters negated by itself"
        )
    if abs(weight) != 1.0:
        found["weight"] = abs(weight)
    if content.get("num_fewshot") is not None:
        found["num_fewshot"] = int(content["num_fewshot"])
    if content.get("limit"):
        found["limit"] = 2 * int(content["limit"])
    if content.get("apply_chat_template", True):
        if _has_template(base):
            found["chat_template"] = True
        else:
            told = "apply_chat_template is left out: the base's tokenizer has no chat template"
            if told not in made.changes:
                made.changes.append(told)
    return found


def _has_template(base: Path | str) -> bool:
    """Whether the base has a chat template; a model that is not here is taken to have one."""
    folder = Path(base)
    if not is_there(folder) or not folder.is_dir():
        return True
    config = folder / "tokenizer_config.json"
    inside = config.exists() and bool(read_json(config).get("chat_template"))
    return inside or any(folder.glob("chat_template*"))


def _space(genome: Content, base: Path | str, made: _Conversion) -> dict[str, Any]:
    method = look_up(genome["merge_method"])
    space: dict[str, Any] = {"methods": [method.name], "depth": _depth(genome, base, made)}
    filters = [str(each) for each in genome.get("filters") or [] if each not in ("*", None)]
    if filters:
        space |= _parts(filters, made)
    if genome.get("allow_negative_weights") and method.name != "slerp":
        space["ranges"] = {"weight": [-0.5, 1.2]}
    rows = {row.name: row for row in method.parameters}
    asked = genome.get("normalize")
    has = rows["normalize"].default if "normalize" in rows else False
    if asked is not None and method.name != "slerp" and bool(asked) != has:
        made.changes.append(
            f"normalize: {str(asked).lower()} is left out: {method.name} searches with "
            f"{str(has).lower()}"
        )
    if "density" in rows:
        made.changes.append("density is one number for all models of a group, not one each")
    return space


def _depth(genome: Content, base: Path | str, made: _Conversion) -> Any:
    size = int(genome.get("layer_granularity") or 0)
    if size < 1:
        return "global"
    if not genome.get("smooth"):
        return "layers" if size == 1 else {"blocks": size}
    layers = _layers(base)
    count = _KNOTS if layers is None else max(2, layers // size)
    known = "" if layers is not None else f"; {_KNOTS} of them, set them to layers / {size}"
    made.changes.append(f"smooth becomes knots: values interpolated over the depth{known}")
    return {"knots": count}


def _layers(base: Path | str) -> int | None:
    """The model's number of layers, if it is here."""
    config = Path(base) / "config.json"
    if not is_there(config):
        return None
    content = read_json(config)
    content = content.get("text_config") or content
    found = [content[key] for key in ("num_hidden_layers", "n_layer") if key in content]
    return int(found[0]) if found else None


def _parts(filters: Sequence[str], made: _Conversion) -> dict[str, Any]:
    """Parts that filters name stand apart, the others together."""
    apart = [_PARTS[each] for each in dict.fromkeys(filters) if each in _PARTS]
    rest = [part for part in _LAYER_PARTS if part not in apart]
    ends = [each for each in filters if each in _ENDS]
    if lost := [each for each in filters if each not in (*_PARTS, *_ENDS)]:
        made.changes.append(
            f"filters: {', '.join(lost)} left out: groups are whole parts (attention, mlp, norm)"
        )
    found: dict[str, Any] = {}
    if apart:
        found["parts"] = [[part] for part in apart] + ([rest] if rest else [])
        told = ", ".join(f"{each} -> {_PARTS[each]}" for each in filters if each in _PARTS)
        made.changes.append(f"filters become parts: {told}")
    if ends:
        found["ends"] = "separate"
        made.changes.append(f"filters {', '.join(ends)}: embeddings, final norm and head apart")
    return found


def _head(path: Path, changes: Sequence[str]) -> list[str]:
    usual = [
        "half of the documents is held out for the verdict at the end",
        "the budget stands here (trials, hours or a clock time), not in --max-fevals; the same "
        "command resumes; the plain merges are scored first; a failed candidate costs one trial",
        "random masks of DARE are the same in the search and in the export",
        "CMA-ES starts at the best trial before it (steps of 1/6 of each range)",
        "embeddings, final norm and head are a group of their own unless all is one group",
        "tasks that lie in a --task-search-path need `folder:`; every key: configs/README.md",
    ]
    lines = [f"Made from {path.name}, a configuration of mergekit-evolve. What changes:"]
    for change in [*changes, *usual]:
        lines += _wrapped(change)
    return lines


def _wrapped(text: str) -> list[str]:
    """The text as an item of a list, in lines of at most 96 characters."""
    lines = ["-"]
    for word in text.split():
        if len(lines[-1]) + 1 + len(word) > 96:
            lines.append(" ")
        lines[-1] += f" {word}"
    return lines

"""mergekit's merge YAML, read into recipes.

There, parameters hang on models, slices or the whole merge; a list is a gradient over the layers,
a list of `filter`/`value` pairs chooses by parts of tensor names. Here a rule covers layers and
parts. Reading resolves every tensor of the base by its name and gathers equal ones into rules.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from evomerge.architectures import place
from evomerge.checkpoints.dequantised import open_checkpoint
from evomerge.checkpoints.locate import locate
from evomerge.checkpoints.source import Checkpoint
from evomerge.errors import UserError
from evomerge.methods import METHODS, look_up
from evomerge.recipe import BASE, Model, ParameterValue, Recipe, Rule
from evomerge.starter import source_names

log = logging.getLogger(__name__)

_SAME = ("weight", "density", "lambda", "epsilon", "gamma", "t", "max_iter", "tol", "scale")
_SAME_TOO = ("normalize", "rescale", "filter_wise", "select_topk", "r", "alpha")
KNOWN = (*_SAME, *_SAME_TOO)
"""Parameters of the same name and meaning in both."""

NAMES = {"ramplus_tl": "ramplus"}
"""Methods by another name; mergekit's first."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "ties": {"density": 1.0},
    "dare_ties": {"density": 1.0},
    "dare_linear": {"density": 1.0},
    "della": {"density": 1.0},
    "della_linear": {"density": 1.0},
    "breadcrumbs": {"density": 1.0},
    "breadcrumbs_ties": {"density": 1.0},
}
"""Where its defaults are not ours."""

_IGNORED = ("int8_mask", "chat_template", "tokenizer_source", "tokenizer", "out_dtype", "name")
_REFUSED = {"multislerp": "its log map leaves out θ / sin θ, so the result would differ"}
WITHOUT_BASE = ("linear", "slerp", "nuslerp", "karcher", "passthrough")
_TOP = (
    *("merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype"),
    *_IGNORED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resolved:
    """What happens to one tensor."""

    sources: tuple[str, ...]
    parameters: tuple[tuple[str, Any], ...]


def is_mergekit(content: Any) -> bool:
    """Whether a YAML document is a merge configuration of mergekit."""
    return isinstance(content, dict) and "merge_method" in content


def is_mergekit_file(path: Path) -> bool:
    """Whether the file is one; false for files that cannot be read."""
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return bool(documents) and is_mergekit(documents[0])


def read_recipe(path: Path) -> Recipe:
    """A recipe.yaml, or a mergekit YAML as a recipe; UserError where it cannot be one."""
    if not is_mergekit_file(path):
        return Recipe.read(path)
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    if len(documents) > 1:
        raise UserError(
            f"{path}: holds {len(documents)} merges, each of the results of those before; put each "
            "into a file and merge them in order"
        )
    try:
        return from_mergekit(documents[0], path.parent)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def from_mergekit(content: Mapping[str, Any], folder: Path = Path()) -> Recipe:
    """The recipe of a mergekit configuration; paths are relative to `folder` or the working folder.

    Reads the names of the base's tensors. UserError for what a recipe cannot say.
    """
    if unknown := [key for key in content if key not in _TOP]:
        raise UserError(f"{unknown[0]}: not understood; expected of mergekit: {', '.join(_TOP)}")
    content = _without_modules(content)
    theirs = content["merge_method"]
    method = look_up(NAMES.get(theirs, theirs))
    if theirs in _REFUSED:
        raise UserError(f"merge_method: {theirs}: {_REFUSED[theirs]}")
    for key in ("int8_mask", "tokenizer_source", "tokenizer", "chat_template"):
        if content.get(key) or key in (content.get("parameters") or {}):
            log.warning("%s is left out: the base's tokenizer is used, arithmetic is float32", key)
    slices = _slices(content)
    paths = [_path(s["model"]) for piece in slices for s in piece["sources"]]
    base_path = content.get("base_model")
    base_path = _path(base_path) if base_path is not None else paths[0]
    sources = [path for path in dict.fromkeys(paths) if path != base_path]
    names = dict(zip(sources, source_names(sources), strict=True)) | {base_path: BASE}
    checkpoint = open_checkpoint(_found(base_path, folder))
    rules = _gathered(method.name, _resolve_all(content, method.name, slices, names, checkpoint))
    dtype = content.get("out_dtype") or content.get("dtype") or checkpoint.config.get("dtype")
    return Recipe(
        base=_model(base_path, folder),
        sources={names[path]: _model(path, folder) for path in sources},
        rules=rules,
        dtype=dtype or checkpoint.config.get("torch_dtype") or "bfloat16",
    )


def _path(model: Any) -> str:
    if isinstance(model, dict):
        model = model.get("model", model)
    if isinstance(model, dict):
        if model.get("lora"):
            raise UserError("model+lora: give the adapter's folder as a source of its own")
        return str(model["path"])
    if "+" in str(model) and not Path(str(model)).exists():
        raise UserError(f"{model}: model+lora: give the adapter's folder as a source of its own")
    return str(model)


def _found(path: str, folder: Path) -> Path:
    beside = folder / path
    return beside if beside.is_dir() else locate(path.partition("@")[0])


def _model(path: str, folder: Path) -> Model:
    if (folder / path).is_dir():
        return Model(path=str(folder / path))
    name, _, revision = path.partition("@")
    return Model(path=name, revision=revision or None)


def _without_modules(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """One module, nested, as if its models or slices stood at the top."""
    modules = content.get("modules")
    if not modules:
        return content
    if len(modules) != 1:
        raise UserError(
            f"modules: has {', '.join(modules)}; only models of one module (the language model) "
            "can be merged"
        )
    module = next(iter(modules.values()))
    parameters = {**(content.get("parameters") or {}), **(module.get("parameters") or {})}
    return {**content, **module, "parameters": parameters}


def _slices(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The merge as slices; a list of models is one slice of all layers."""
    if ("models" in content) == ("slices" in content):
        raise UserError("expected either models or slices")
    if "models" in content:
        return [{"sources": content["models"], "parameters": {}}]
    found: list[dict[str, Any]] = content["slices"]
    for number, piece in enumerate(found):
        for key in ("base_model", "residual_weight"):
            if piece.get(key) not in (None, content.get("base_model")):
                raise UserError(f"slices.{number}.{key}: a slice's own is not supported")
    return found


def _resolve_all(
    content: Mapping[str, Any],
    method: str,
    slices: Sequence[dict[str, Any]],
    names: Mapping[str, str],
    base: Checkpoint,
) -> dict[str, _Resolved]:
    """What happens to every tensor of the base, by name."""
    places = {name: place(name) for name in base.tensors}
    layers = 1 + max((p.layer for p in places.values() if p.layer is not None), default=-1)
    spans = [_span(piece, layers) for piece in slices]
    expected = 0
    for first, last in spans:
        if first != expected:
            raise UserError(
                f"slices: layers {first}-{last - 1} do not lie at their own place in the output; "
                "expected slices in order, without gaps or repeats (layers that move are a stack, "
                "not a merge)"
            )
        expected = last
    if expected != layers:
        raise UserError(f"slices: cover {expected} layers of {layers}; expected all of them")
    resolved = {}
    for name, where in places.items():
        if where.layer is not None:
            number = next(n for n, (_, last) in enumerate(spans) if where.layer < last)
            first, last = spans[number]
            t = (where.layer - first) / max(1, last - 1 - first)
        else:
            after = where.part in ("final_norm", "head")
            number, t = (len(slices) - 1, 1.0) if after else (0, 0.0)
        resolved[name] = _resolve(content, method, slices[number], names, name, t)
    return resolved


def _span(piece: Mapping[str, Any], layers: int) -> tuple[int, int]:
    ranges = {tuple(source.get("layer_range") or (0, layers)) for source in piece["sources"]}
    if len(ranges) != 1:
        raise UserError(
            f"slices: sources of one slice take layers {sorted(ranges)}; expected equal ranges: "
            "merging different layers with each other is not supported"
        )
    first, last = ranges.pop()
    return int(first), int(last)


def _resolve(
    content: Mapping[str, Any],
    method: str,
    piece: Mapping[str, Any],
    names: Mapping[str, str],
    tensor: str,
    t: float,
) -> _Resolved:
    """Parameters of one tensor: of the source, else of the slice, else of the whole merge."""
    whole = content.get("parameters") or {}
    pairs = [(names[_path(source["model"])], source) for source in piece["sources"]]
    if method not in WITHOUT_BASE:
        pairs = [(name, source) for name, source in pairs if name != BASE]
    if method == "slerp":
        if "base_model" not in content or BASE not in [name for name, _ in pairs]:
            raise UserError("slerp: expected base_model to be one of the two models (t = 0)")
        pairs.sort(key=lambda pair: pair[0] != BASE)
    places = [piece.get("parameters") or {}, whole]
    given: set[str] = {
        key
        for source in [*places, *(s.get("parameters") or {} for _, s in pairs)]
        for key in source
    }
    parameters: dict[str, Any] = {}
    rows = {row.name: row for row in METHODS[method].parameters}
    for key in given - set(_IGNORED):
        if key in ("nuslerp_flatten", "nuslerp_row_wise"):
            continue
        if key == "normalize" and method == "task_arithmetic":
            continue
        if key not in rows or key not in KNOWN:
            known = ", ".join(rows)
            raise UserError(f"parameters: {key} is not understood for {method}; known: {known}")
    for key, row in rows.items():
        fallback = DEFAULTS.get(method, {}).get(key, row.default)
        each = [
            _value([source.get("parameters") or {}, *places], key, tensor, t, fallback)
            for _, source in pairs
        ]
        if row.per_source:
            parameters[key] = tuple(float(value) for value in each)
        else:
            value = _value(places, key, tensor, t, fallback)
            parameters[key] = value if isinstance(row.default, bool) else float(value)
    _translate_flags(content, method, places, parameters)
    sources = tuple(name for name, _ in pairs)
    return _Resolved(sources=sources, parameters=tuple(sorted(parameters.items())))


def _translate_flags(
    content: Mapping[str, Any],
    method: str,
    places: Sequence[Mapping[str, Any]],
    parameters: dict[str, Any],
) -> None:
    flags = {key: value for place_ in reversed(places) for key, value in place_.items()}
    if method == "nuslerp":
        parameters["task_vectors"] = content.get("base_model") is not None
        if not flags.get("nuslerp_flatten", True):
            # Its `row_wise` runs over the first dimension: each column by its own angle.
            parameters["by_column"] = bool(flags.get("nuslerp_row_wise", False))
            parameters["by_row"] = not parameters["by_column"]
    if method == "task_arithmetic" and flags.get("normalize", False):
        total = sum(parameters["weight"])
        parameters["weight"] = tuple(weight / total for weight in parameters["weight"])


def _value(
    places: Iterable[Mapping[str, Any]], key: str, tensor: str, t: float, fallback: Any
) -> Any:
    """The first setting that applies to the tensor."""
    for settings in places:
        if key in settings:
            value = _evaluated(settings[key], tensor, t)
            if value is not None:
                return value
    return fallback


def _evaluated(setting: Any, tensor: str, t: float) -> Any:
    """A number as it is, a gradient at t (0: first layer, 1: last), the first filter that fits."""
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return _plain(setting)
    if any(isinstance(each, dict) for each in setting):
        for each in setting:
            wanted = each.get("filter")
            if wanted in (None, "*") or wanted in tensor:
                return _evaluated(each["value"], tensor, t)
        return None
    points = [_plain(each) for each in setting]
    at = t * (len(points) - 1)
    if any(isinstance(each, (bool, str)) for each in points):
        return points[int(at)]
    low = min(int(at), len(points) - 1)
    high = min(low + 1, len(points) - 1)
    return points[low] + (at - low) * (points[high] - points[low])


def _plain(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as a string."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _gathered(method: str, resolved: Mapping[str, _Resolved]) -> tuple[Rule, ...]:
    """Rules that say the same of every tensor, as few as their layers and parts allow."""
    cells: dict[tuple[int | None, str], dict[_Resolved, list[str]]] = defaultdict(dict)
    for name, what in resolved.items():
        where = place(name)
        cells[where.layer, where.part].setdefault(what, []).append(name)
    if len({what for cell in cells.values() for what in cell}) == 1:
        return (_rule(method, next(iter(resolved.values()))),)
    rules = []
    uniform: dict[_Resolved, dict[int | None, list[str]]] = {}
    for (layer, part), cell in cells.items():
        if len(cell) == 1:
            what = next(iter(cell))
            uniform.setdefault(what, {}).setdefault(layer, []).append(part)
            continue
        for what, names in cell.items():
            rule = _rule(method, what)
            at = None if layer is None else (layer,)
            rules.append(replace(rule, layers=at, parts=(part,), tensors=tuple(names)))
    for what, by_layer in uniform.items():
        layers_of: dict[tuple[str, ...], list[int]] = {}
        for layer, parts in by_layer.items():
            if layer is None:
                rules.append(replace(_rule(method, what), parts=tuple(parts)))
            else:
                layers_of.setdefault(tuple(parts), []).append(layer)
        for together, layers in layers_of.items():
            rules.append(replace(_rule(method, what), layers=tuple(sorted(layers)), parts=together))
    return tuple(rules)


def _rule(method: str, what: _Resolved) -> Rule:
    parameters: dict[str, ParameterValue] = {}
    for name, value in what.parameters:
        if isinstance(value, tuple):
            parameters[name] = dict(zip(what.sources, value, strict=True))
        else:
            parameters[name] = value
    return Rule(method=method, sources=what.sources, parameters=parameters)

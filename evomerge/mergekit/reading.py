"""mergekit's merge YAML, read into recipes.

There, parameters hang on models, slices or the whole merge; a list is a gradient over the layers,
a list of `filter`/`value` pairs chooses by parts of tensor names. Here a rule covers layers and
parts. Reading resolves every tensor of the base by its name and gathers equal ones into rules.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from evomerge.architectures import place
from evomerge.checkpoints.dequantised import open_checkpoint
from evomerge.checkpoints.locate import locate
from evomerge.checkpoints.source import Checkpoint
from evomerge.errors import UserError
from evomerge.files import is_there, read_text
from evomerge.mergekit.correspondence import BASE_JOINS, NAMES, REFUSED, TOP
from evomerge.mergekit.gathering import gathered
from evomerge.mergekit.resolving import Input, Merge, Slice, resolve_all
from evomerge.mergekit.shape import check_merge
from evomerge.mergekit.stacks import stacked
from evomerge.methods import look_up
from evomerge.recipe import BASE, MERGED, UNION, DType, Model, Piece, Recipe, Rule
from evomerge.starter import source_names
from evomerge.typed_yaml import safe_documents

log = logging.getLogger(__name__)


def is_mergekit(content: Any) -> bool:
    """Whether a YAML document is a merge configuration of mergekit."""
    return isinstance(content, dict) and "merge_method" in content


def read_documents(path: Path) -> list[Any]:
    """The YAML documents of a file; none of one that cannot be read."""
    try:
        return [data for _, data in safe_documents(read_text(path), str(path))]
    except (OSError, ValueError, UserError):
        return []


def is_mergekit_file(path: Path) -> bool:
    """Whether the file's first document is one; false for files that cannot be read."""
    return any(map(is_mergekit, read_documents(path)[:1]))


def read_recipe(path: Path) -> Recipe:
    """A recipe.yaml, or a mergekit YAML as a recipe; UserError where it cannot be one."""
    documents = read_documents(path)
    if not documents or not is_mergekit(documents[0]):
        return Recipe.read(path)
    if len(documents) > 1:
        raise UserError(
            f"{path}: holds {len(documents)} merges, each of the results of those before, which no "
            "single recipe can say; `evomerge merge` makes them in order"
        )
    try:
        return from_mergekit(documents[0], path.parent)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def from_mergekit(content: Mapping[str, Any], folder: Path = Path()) -> Recipe:
    """The recipe of a mergekit configuration; paths are relative to `folder` or the working folder.

    Reads the names of the base's tensors. UserError for what a recipe cannot say.
    """
    if unknown := [key for key in content if key not in TOP]:
        raise UserError(f"{unknown[0]}: not understood; expected of mergekit: {', '.join(TOP)}")
    check_merge(content)
    content = _without_modules(content)
    theirs = str(content["merge_method"])
    if theirs in REFUSED:
        raise UserError(f"merge_method: {theirs}: {REFUSED[theirs]}")
    method = look_up(NAMES.get(theirs, theirs)).name
    slices = _slices(content, method)
    given = _base_of(content, slices)
    paths = [model_path(source["model"], given) for piece in slices for source in piece["sources"]]
    base = paths[0] if given is None else given
    if method == "passthrough" and given is not None and set(paths) != {given}:
        raise UserError("base_model: passthrough takes one model; leave base_model out")
    sources = [path for path in dict.fromkeys(paths) if path != base]
    names = {**dict(zip(sources, _names(sources), strict=True)), base: BASE}
    checkpoint = open_checkpoint(_found(base, folder))
    merge = Merge(
        method=method,
        slices=tuple(_slice(piece, names, base) for piece in slices),
        parameters=content.get("parameters") or {},
        has_base=given is not None,
    )
    rules, stack = _rules(merge, checkpoint)
    return Recipe(
        base=_model(base, folder),
        sources={names[path]: _model(path, folder) for path in sources},
        rules=rules,
        stack=stack,
        vocabulary=_vocabulary(content, names, base),
        dtype=_dtype(content, checkpoint.config),
    )


def _rules(merge: Merge, base: Checkpoint) -> tuple[tuple[Rule, ...], tuple[Piece, ...] | None]:
    """Rules, and a stack where layers are not each in its place."""
    resolution = resolve_all(merge, list(base.tensors))
    layers = {place(name).layer for name in base.tensors} - {None}
    if resolution.moves(len(layers)):
        return stacked(merge.method, resolution)
    return gathered(merge.method, resolution.tensors()), None


def _names(sources: Sequence[str]) -> list[str]:
    """Short names; `merged` is none, since a stack means the result of the rules by it."""
    return [f"{name}_model" if name == MERGED else name for name in source_names(sources)]


def _vocabulary(content: Mapping[str, Any], names: Mapping[str, str], base: str) -> str:
    """`base`, `union` or a source's name; UserError for tokens that are set one by one."""
    tokenizer = content.get("tokenizer")
    for key in set(tokenizer or {}) - {"source"}:
        raise UserError(f"tokenizer.{key}: not supported; leave it out")
    if content.get("chat_template"):
        log.warning("chat_template is left out: the one of the tokenizer is kept")
    key, asked = "tokenizer_source", content.get("tokenizer_source", BASE) or BASE
    if tokenizer is not None:
        key, asked = "tokenizer.source", tokenizer.get("source", UNION)
    if asked in (BASE, UNION):
        return str(asked)
    path = model_path(asked, base)
    if path not in names:
        raise UserError(f"{key}: {path}: expected base, union, or one of the merge's models")
    return names[path]


def _dtype(content: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    asked = [content.get("out_dtype"), content.get("dtype")]
    asked += [config.get("dtype"), config.get("torch_dtype"), "bfloat16"]
    dtype = next(each for each in asked if each is not None)
    if dtype not in get_args(DType):
        raise UserError(f"dtype: {dtype!r}; expected one of {', '.join(get_args(DType))}")
    return dtype


def _base_of(content: Mapping[str, Any], slices: Sequence[Mapping[str, Any]]) -> str | None:
    """The base model that the merge, or each of its slices, names."""
    own = [piece.get("base_model") for piece in slices]
    named = [each for each in (content.get("base_model"), *own) if each is not None]
    bases = list(dict.fromkeys(model_path(each, None) for each in named))
    if len(bases) > 1 or (bases and content.get("base_model") is None and None in own):
        raise UserError(f"base_model: {', '.join(bases)} in some slices; expected one for all")
    return bases[0] if bases else None


def model_path(model: Any, base: str | None) -> str:
    """`path`, `path@revision`; of `base+adapter` the adapter, since it is a source of its own."""
    lora = None
    if isinstance(model, Mapping):
        lora = (model.get("lora") or {}).get("path")
        model = model.get("model", model)
        if isinstance(model, Mapping):
            revision = model.get("revision")
            model = f"{model['path']}@{revision}" if revision else model["path"]
    elif "+" in str(model) and not is_there(Path(str(model))):
        model, _, lora = str(model).partition("+")
    if lora is None:
        return str(model)
    if str(model) != base:
        raise UserError(
            f"{model}+{lora}: an adapter on a model other than base_model; make it a model first "
            "(a recipe with one source, the adapter)"
        )
    return str(lora)


def _found(path: str, folder: Path) -> Path:
    beside = folder / path
    if is_there(beside) and (beside.is_dir() or beside.suffix == ".gguf"):
        return beside
    name, _, revision = path.partition("@")
    return locate(name, revision or None)


def _model(path: str, folder: Path) -> Model:
    if is_there(folder / path):
        return Model(path=str(folder / path))
    name, _, revision = path.partition("@")
    return Model(path=name, revision=revision or None)


def _without_modules(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """One module, nested, as if its models or slices stood at the top."""
    modules = content.get("modules")
    if not modules:
        return content
    if "models" in content or "slices" in content:
        raise UserError("modules: stands beside models or slices; expected one of the three")
    if len(modules) != 1:
        raise UserError(
            f"modules: has {', '.join(modules)}; only models of one module (the language model) "
            "can be merged"
        )
    module = next(iter(modules.values()))
    parameters = {**(content.get("parameters") or {}), **(module.get("parameters") or {})}
    return {**content, **module, "parameters": parameters}


def _slices(content: Mapping[str, Any], method: str) -> list[dict[str, Any]]:
    """The merge as slices; a list of models is one slice of all layers."""
    if ("models" in content) == ("slices" in content):
        raise UserError("expected either models or slices")
    if not (content.get("models") or content.get("slices")):
        raise UserError("the merge has no models; expected one at least")
    pieces: list[dict[str, Any]] = content.get("slices") or [{"sources": content["models"]}]
    for number, piece in enumerate(pieces):
        if piece.get("residual_weight") is not None:
            raise UserError(f"slices.{number}.residual_weight: not supported")
        if not piece.get("sources"):
            raise UserError(f"slices.{number}: has no models; expected at least one")
    base = content.get("base_model")
    if "models" in content and base is not None and method in BASE_JOINS:
        listed = [model_path(source["model"], None) for source in content["models"]]
        if model_path(base, None) not in listed:
            return [{"sources": [*content["models"], {"model": base}]}]
    return pieces


def _slice(piece: Mapping[str, Any], names: Mapping[str, str], base: str) -> Slice:
    inputs: list[Input] = []
    for source in piece["sources"]:
        name = names[model_path(source["model"], base)]
        if name in [each.name for each in inputs]:
            raise UserError(f"{source['model']}: stands twice in one list of models")
        span = source.get("layer_range")
        inputs.append(
            Input(
                name=name,
                layers=None if span is None else (int(span[0]), int(span[1])),
                parameters=source.get("parameters") or {},
            )
        )
    return Slice(inputs=tuple(inputs), parameters=piece.get("parameters") or {})

"""A recipe: everything needed to make the same weights again. Knows neither torch nor optuna.

A recipe names a base, its sources and an ordered list of rules. Each rule says which tensors it
covers (by layer and part) and which method merges which sources there, with which parameters.
Every tensor of the model must be covered by exactly one rule.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from evomerge.errors import UserError, did_you_mean
from evomerge.files import is_there, read_text, write_text
from evomerge.typed_yaml import dump_yaml, parse_yaml, validate

DType = Literal["float32", "float16", "bfloat16"]
ParameterValue = bool | float | dict[str, float]
"""A flag, a number, or one number per source name."""

BASE = "base"
"""The name under which a rule may list the base model among its sources."""

MERGED = "merged"
"""The name under which a stack takes a layer that the recipe's rules make."""

UNION = "union"
"""The vocabulary that has the base's tokens, then what the sources add."""

_MOST_LAYERS = 10_000
"""In a list of layers: far more than models have, and few enough to hold."""

_HEADER = """\
# A merge recipe of evomerge: all that is needed to make the same weights again.
#   evomerge merge {name} OUT
# Relative paths are relative to this file.
"""


def parse_sequence(value: Any) -> Any:
    """`3`, `"0-3,7"` or a list of numbers -> tuple of layer numbers, as given; None stays None."""
    if value is None or isinstance(value, tuple):
        return value
    layers: list[int] = []
    for piece in value if isinstance(value, list) else str(value).split(","):
        first, _, last = str(piece).strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or len(first + last) > 8:
            raise ValueError(f"expected layers such as 5, 0-3 or 0-3,7, got {value!r:.80}")
        span = range(int(first), int(last or first) + 1)
        if len(layers) + len(span) > _MOST_LAYERS:
            raise ValueError(f"expected at most {_MOST_LAYERS} layers, got {value!r:.80}")
        layers += span
    if not layers:
        raise ValueError(f"expected at least one layer, got {value!r:.80}")
    return tuple(layers)


def parse_layers(value: Any) -> Any:
    """As `parse_sequence`, sorted and each number once."""
    layers = parse_sequence(value)
    return layers if value is None or isinstance(value, tuple) else tuple(sorted(set(layers)))


def format_layers(layers: tuple[int, ...]) -> str:
    """(0, 1, 2, 3, 7) -> "0-3,7", in the given order."""
    pieces: list[list[int]] = []
    for layer in layers:
        if pieces and layer == pieces[-1][-1] + 1:
            pieces[-1].append(layer)
        else:
            pieces.append([layer])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Where a checkpoint lies, and what it must contain."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    path: str
    """Folder, or id on the model hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    sha256: str | None = None
    """Hash of the weights; where it is given, other weights are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """LiNeS (Wang et al. 2024, arXiv 2410.17146): task vectors scaled by depth.

    `lambda` of layer l of L is multiplied by alpha + beta · l / (L − 1): that of the embeddings by
    alpha, that of the final norm and the head by alpha + beta.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    alpha: float
    beta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How a group of tensors is merged."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    method: str
    sources: tuple[str, ...]
    """Names of the recipe's sources, or `base`; their order is the order of the sums."""
    parameters: dict[str, ParameterValue] = dataclasses.field(default_factory=dict)
    layers: Annotated[tuple[int, ...] | None, BeforeValidator(parse_layers)] = None
    """Layer numbers; None: tensors of any layer, and of none."""
    parts: tuple[str, ...] | None = None
    """Names of parts (attention, mlp, norm, embeddings, final_norm, head); None: every part."""
    tensors: tuple[str, ...] | None = None
    """Whole names of tensors, within layers and parts; None: all of them."""
    lines: Lines | None = None
    """Scales the task vectors by depth, for any method with a `lambda`."""

    def covers(self, layer: int | None, part: str, tensor: str) -> bool:
        """Whether a tensor at this place (layer None: outside the layers) falls under the rule."""
        return (
            (self.layers is None or layer in self.layers)
            and (self.parts is None or part in self.parts)
            and (self.tensors is None or tensor in self.tensors)
        )

    def label(self) -> str:
        """Short name of the group, as tables and errors print it: `layers 0-3 attention+mlp`."""
        words = [] if self.layers is None else [f"layers {format_layers(self.layers)}"]
        words += [] if self.parts is None else ["+".join(self.parts)]
        words += [] if self.tensors is None else [f"{len(self.tensors)} tensors"]
        return " ".join(words) or "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Successive layers of a stack, all of one model."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    source: str
    """Name of a source, `base`, or `merged`: what the recipe's rules make of the layer."""
    layers: Annotated[tuple[int, ...], BeforeValidator(parse_sequence)]
    """Which layers, in the order in which they are stacked; repeats are allowed."""
    scale: float = 1.0
    """Factor on the projections that write to the residual stream (o_proj, down_proj, ...)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The text that sources read for methods that ask for their activations."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    file: str
    """Plain text, UTF-8."""
    sha256: str | None = None
    """Hash of the file; where it is given, another text is refused."""
    tokens: Annotated[int, Field(ge=1)] = 8192
    """How many of its first tokens are used; all of a shorter text."""
    length: Annotated[int, Field(ge=2)] = 512
    """Tokens per sequence; at most what the model has positions for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The frozen result of one proposal, or what a person wrote."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    base: Model
    sources: dict[str, Model]
    rules: tuple[Rule, ...]
    stack: tuple[Piece, ...] | None = None
    """The layers of the result, first to last; None: those of the base, each in its place. Rules
    make what lies outside the layers, and the layers that the stack takes from `merged`."""
    seed: int = 0
    """Key of the random masks."""
    dtype: DType = "bfloat16"
    """Precision of the merged weights; the arithmetic is float32, cast once."""
    vocabulary: str = BASE
    """Which tokens the merged model has, in which order: those of the base, of a source (by name),
    or `union`: the base's, then what the sources add."""
    calibration: Calibration | None = None
    """Needed by methods that ask for activations."""

    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the weights; equal recipes, equal weights.

        Models count by their hash, not by where they lie (by path where no hash is known).
        """
        facts = dataclasses.asdict(self)
        for model in (facts["base"], *facts["sources"].values()):
            if model["sha256"]:
                del model["path"], model["revision"]
        if facts["calibration"] is None:
            del facts["calibration"]  # as it was before recipes had one
        elif facts["calibration"]["sha256"]:
            del facts["calibration"]["file"]
        for rule in facts["rules"]:
            for key in ("lines", "tensors"):
                if rule[key] is None:
                    del rule[key]  # as it was before rules had them
        if self.stack is None:
            del facts["stack"]
        if self.vocabulary == BASE:
            del facts["vocabulary"]  # as it was before recipes had one
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def model(self, name: str) -> Model:
        """The model that a rule calls `name`."""
        return self.base if name == BASE else self.sources[name]

    def layers_of_stack(self) -> tuple[int, ...] | None:
        """For each layer of the result, the layer it was taken from; None without a stack."""
        if self.stack is None:
            return None
        return tuple(layer for piece in self.stack for layer in piece.layers)

    def to_mapping(self) -> dict[str, Any]:
        """Plain dictionaries and lists, as in recipe.yaml and in trial records."""
        return {
            "base": _without_none(dataclasses.asdict(self.base)),
            "sources": {
                name: _without_none(dataclasses.asdict(model))
                for name, model in self.sources.items()
            },
            "seed": self.seed,
            "dtype": self.dtype,
            **({} if self.vocabulary == BASE else {"vocabulary": self.vocabulary}),
            **self._calibration_mapping(),
            "rules": [_rule_mapping(rule) for rule in self.rules],
            **({} if self.stack is None else {"stack": [_piece_mapping(p) for p in self.stack]}),
        }

    def _calibration_mapping(self) -> dict[str, Any]:
        if self.calibration is None:
            return {}
        return {"calibration": _without_none(dataclasses.asdict(self.calibration))}

    def to_json(self) -> str:
        """`to_mapping` on one line, as a study keeps it: a fifth of the memory."""
        return json.dumps(self.to_mapping(), separators=(",", ":"))

    def to_yaml(self) -> str:
        """The recipe as people read it."""
        return dump_yaml(self.to_mapping())

    def write(self, path: Path) -> None:
        """Writes recipe.yaml, in one step."""
        write_text(path, _HEADER.format(name=path.name) + self.to_yaml())

    @staticmethod
    def from_mapping(mapping: Mapping[str, Any], name: str = "recipe") -> "Recipe":
        """Inverse of `to_mapping`; UserError where it does not fit."""
        return _checked(validate(mapping, Recipe, name=name), name)

    @staticmethod
    def from_json(text: str, name: str = "recipe") -> "Recipe":
        """Inverse of `to_json`; UserError where it does not fit."""
        try:
            mapping = json.loads(text)
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: is no JSON: {error}") from error
        return Recipe.from_mapping(mapping, name)

    @staticmethod
    def from_yaml(text: str, name: str = "recipe") -> "Recipe":
        """Reads a recipe; UserError with the path in the file where something does not fit."""
        return _checked(parse_yaml(text, Recipe, name=name), name)

    @staticmethod
    def read(path: Path) -> "Recipe":
        """Reads recipe.yaml; local paths are taken relative to the file."""
        try:
            text = read_text(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from error
        recipe = Recipe.from_yaml(text, name=str(path))

        def located(model: Model) -> Model:
            beside = path.parent / model.path
            return dataclasses.replace(model, path=str(beside)) if is_there(beside) else model

        calibration = recipe.calibration
        if calibration is not None and is_there(beside := path.parent / calibration.file):
            calibration = dataclasses.replace(calibration, file=str(beside))
        return dataclasses.replace(
            recipe,
            calibration=calibration,
            base=located(recipe.base),
            sources={name: located(model) for name, model in recipe.sources.items()},
        )


def _checked(recipe: Recipe, name: str) -> Recipe:
    models = [*recipe.sources, BASE]
    named = [
        (f"rules.{n}.sources", source, models)
        for n, rule in enumerate(recipe.rules)
        for source in rule.sources
    ]
    for n, piece in enumerate(recipe.stack or ()):
        named.append((f"stack.{n}.source", piece.source, [*models, MERGED]))
    named.append(("vocabulary", recipe.vocabulary, [BASE, UNION, *recipe.sources]))
    for where, source, known in named:
        if source not in known:
            raise UserError(f"{name}: {where}: {source!r}: {did_you_mean(source, known)}")
    if MERGED in recipe.sources and recipe.stack is not None:
        raise UserError(f"{name}: sources.{MERGED}: means the result of the rules in a stack")
    return recipe


def _without_none(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None}


def _rule_mapping(rule: Rule) -> dict[str, Any]:
    where: dict[str, Any] = {}
    if rule.layers is not None:
        where["layers"] = format_layers(rule.layers)
    if rule.parts is not None:
        where["parts"] = list(rule.parts)
    if rule.tensors is not None:
        where["tensors"] = list(rule.tensors)
    if rule.lines is not None:
        where["lines"] = dataclasses.asdict(rule.lines)
    return where | {
        "method": rule.method,
        "sources": list(rule.sources),
        "parameters": dict(rule.parameters),
    }


def _piece_mapping(piece: Piece) -> dict[str, Any]:
    scale = {} if piece.scale == 1.0 else {"scale": piece.scale}
    return {"source": piece.source, "layers": format_layers(piece.layers), **scale}

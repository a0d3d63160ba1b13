"""The shape of mergekit's YAML: which keys hold words, numbers, lists or mappings.

Only types are checked here; what names and numbers mean is checked where they are read.
"""

from collections.abc import Mapping
from typing import (
    Annotated,
    Any,
    NotRequired,  # pydantic takes no other on Python 3.11
)

from pydantic import AllowInfNan, BeforeValidator, ConfigDict, Field
from typing_extensions import TypedDict

from evomerge.errors import UserError
from evomerge.typed_yaml import validate


def _number(value: Any) -> Any:
    """Whole numbers too large for a float are none."""
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("expected a number below 2^63")
    return value


Number = Annotated[float, AllowInfNan(False), BeforeValidator(_number)]
Plain = bool | Number | str
Layers = tuple[
    Annotated[int, Field(strict=True, ge=0, lt=10_000)],
    Annotated[int, Field(strict=True, ge=0, lt=10_000)],
]


class _Condition(TypedDict):
    filter: NotRequired[str | None]
    value: Plain | Annotated[list[Plain], Field(min_length=1)]


Setting = (
    Plain
    | None
    | _Condition
    | Annotated[list[Plain], Field(min_length=1)]
    | Annotated[list[_Condition], Field(min_length=1)]
)
Settings = dict[str, Setting] | None


class _Path(TypedDict):
    path: str
    revision: NotRequired[str | None]


class _Adapter(TypedDict):
    path: str


class _Reference(TypedDict):
    model: str | _Path
    lora: NotRequired[_Adapter | None]


Reference = str | Annotated[int, Field(strict=True)] | _Reference | _Path


class _Source(TypedDict):
    model: Reference
    layer_range: NotRequired[Layers | None]
    parameters: NotRequired[Settings]


class _Slice(TypedDict):
    sources: NotRequired[list[_Source] | None]
    base_model: NotRequired[Reference | None]
    parameters: NotRequired[Settings]
    residual_weight: NotRequired[Any]


class _Tokenizer(TypedDict):
    source: NotRequired[Reference]


class _Module(TypedDict):
    models: NotRequired[list[_Source]]
    slices: NotRequired[list[_Slice]]
    parameters: NotRequired[Settings]


class _Merge(_Module):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    merge_method: str
    base_model: NotRequired[Reference | None]
    modules: NotRequired[dict[str, _Module] | None]
    dtype: NotRequired[str | None]
    out_dtype: NotRequired[str | None]
    tokenizer_source: NotRequired[Reference | None]
    tokenizer: NotRequired[_Tokenizer | None]
    chat_template: NotRequired[Any]
    name: NotRequired[str | int | None]


class _Genome(TypedDict):
    models: list[Reference]
    merge_method: str
    base_model: NotRequired[Reference | None]
    layer_granularity: NotRequired[Annotated[int, Field(ge=0, lt=10_000)] | None]
    normalize: NotRequired[bool | None]
    filters: NotRequired[list[str | None] | None]
    allow_negative_weights: NotRequired[bool | None]
    smooth: NotRequired[bool | None]
    tokenizer_source: NotRequired[str | None]


class _Task(TypedDict):
    name: str
    metric: NotRequired[str | None]
    weight: NotRequired[Number]


class _Evolve(TypedDict):
    genome: _Genome
    tasks: list[_Task]
    limit: NotRequired[Annotated[int, Field(ge=0, lt=2**31)] | None]
    num_fewshot: NotRequired[Annotated[int, Field(ge=0, lt=2**31)] | None]
    shuffle: NotRequired[bool | None]
    random_init: NotRequired[bool | None]
    apply_chat_template: NotRequired[bool | None]
    fewshot_as_multiturn: NotRequired[bool | None]


def check_merge(content: Mapping[str, Any]) -> None:
    """UserError for a merge in which something is of another type than mergekit has there."""
    _check(content, _Merge)


def check_evolve(content: Mapping[str, Any]) -> None:
    """As `check_merge`, of a configuration of mergekit-evolve."""
    _check(content, _Evolve)


def _check(content: Mapping[str, Any], kind: type[Any]) -> None:
    if other := [key for key in content if not isinstance(key, str)]:
        raise UserError(f"{other[0]!r:.80}: expected a name as key")
    try:
        validate(content, kind, name="merge")
    except UserError as error:
        lines = str(error).splitlines()
        raise UserError("\n".join(line.removeprefix("merge: ") for line in lines)) from None

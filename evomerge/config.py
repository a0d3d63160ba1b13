"""The configuration: one YAML file into frozen, typed objects, checked before anything is loaded.

Every key with its unit and default is listed in configs/README.md. Mistakes are UserErrors that
give the path in the file, the value, what was expected, and the nearest valid name.
"""

import datetime
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from evomerge.architectures import LAYER_PARTS, PARTS
from evomerge.errors import UserError, did_you_mean
from evomerge.merging.placement import Placement
from evomerge.methods import METHODS
from evomerge.methods.compiled import Compile
from evomerge.recipe import BASE, MERGED, DType, Model, parse_layers
from evomerge.searching.groups import Blocks, Depth, Ends, Knots
from evomerge.searching.samplers import SAMPLERS
from evomerge.searching.space import Range
from evomerge.searching.stacks import Order
from evomerge.typed_yaml import read_yaml, validate

_STRICT = ConfigDict(extra="forbid")


def _model(value: Any) -> Any:
    """A path or hub id may stand for itself; `id@revision` gives a revision."""
    if not isinstance(value, str):
        return value
    path, _, revision = value.partition("@")
    return {"path": path, "revision": revision or None}


def _known(names: Any, kind: str) -> Any:
    def check(value: Any) -> Any:
        for name in value if isinstance(value, (list, tuple)) else [value]:
            if name not in names:
                raise ValueError(f"unknown {kind} {name!r}; {did_you_mean(str(name), names)}")
        return value

    return check


def _range(value: Any) -> Any:
    """[low, high], or one number."""
    if isinstance(value, list):
        numbers = all(isinstance(end, (int, float)) for end in value)
        if len(value) != 2 or not numbers or not value[0] < value[1]:
            raise ValueError(f"expected [low, high] with low < high, or one number, got {value}")
    return value


def _ranges(value: Any) -> Any:
    """Names and limits of parameters, against the rows of METHODS."""
    if not isinstance(value, dict):
        return value
    rows = {row.name: row for method in METHODS.values() for row in method.parameters}
    for name, span in value.items():
        if name not in rows or isinstance(rows[name].default, bool):
            numeric = [row for row in rows if not isinstance(rows[row].default, bool)]
            raise ValueError(f"unknown parameter {name!r}; {did_you_mean(str(name), numeric)}")
        ends = _range(span) if isinstance(span, list) else [span]
        row = rows[name]
        for end in ends:
            if not isinstance(end, (int, float)) or not row.minimum <= end <= row.maximum:
                limits = f"{row.minimum:g} to {row.maximum:g}"
                raise ValueError(f"{name}: got {end!r}, expected a number from {limits}")
    return value


def _lines(value: Any) -> Any:
    """`true`, or ranges for alpha and beta -> the two ranges."""
    if value in (None, False):
        return None
    given = {} if value is True else value
    if not isinstance(given, dict) or set(given) - {"alpha", "beta"}:
        raise ValueError(f"expected true, or ranges of alpha and beta, got {value!r}")
    spans = {"alpha": [0.0, 1.0], "beta": [0.0, 1.0], **given}
    return tuple(
        range_of(spans, name) for name in ("alpha", "beta") if _range(spans[name]) is not None
    )


def _depth(value: Any) -> Any:
    if isinstance(value, dict) and len(value) == 1:
        ((name, count),) = value.items()
        if name in ("blocks", "knots") and isinstance(count, int) and count >= 1:
            return Blocks(size=count) if name == "blocks" else Knots(count=count)
    if value in ("global", "layers"):
        return value
    raise ValueError(
        f"expected global, layers, {{blocks: N}} (N layers each) or {{knots: N}}, got {value!r}"
    )


def _parts(value: Any) -> Any:
    """`together`, `separate`, or which parts go together: [[attention, norm], [mlp]]."""
    if value == "together":
        return (LAYER_PARTS,)
    if value == "separate":
        return tuple((part,) for part in LAYER_PARTS)
    lists = isinstance(value, list) and all(isinstance(group, list) for group in value)
    if lists and sorted(part for group in value for part in group) == sorted(LAYER_PARTS):
        return tuple(tuple(group) for group in value)
    raise ValueError(
        f"expected together, separate, or a list of lists in which each of "
        f"{', '.join(LAYER_PARTS)} stands once, got {value!r}"
    )


def _clock(value: Any) -> Any:
    """`07:00` -> minutes after midnight; YAML reads an unquoted 07:00 as a number of its own."""
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", str(value))
    if isinstance(value, str) and match:
        return int(match[1]) * 60 + int(match[2])
    raise ValueError(f'expected a clock time in quotes, such as "07:00", got {value!r}')


ModelField = Annotated[Model, BeforeValidator(_model)]
RangesField = Annotated[dict[str, Annotated[Any, Field()]], BeforeValidator(_ranges)]
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """One task and what of it counts."""

    __pydantic_config__ = _STRICT

    folder: Path | None = None
    metric: str | None = None
    filter: str | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    chat_template: bool = False
    system_instruction: str | None = None
    limit: Count | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OverrideConfig:
    """Other ranges for some groups: those whose layers and parts all lie within."""

    __pydantic_config__ = _STRICT

    ranges: RangesField
    layers: Annotated[tuple[int, ...] | None, BeforeValidator(parse_layers)] = None
    parts: Annotated[tuple[str, ...] | None, BeforeValidator(_known(PARTS, "part"))] = None


def _span(value: Any) -> Any:
    """[fewest, most]."""
    whole = isinstance(value, list) and all(isinstance(end, int) for end in value)
    if not whole or len(value) != 2 or not 1 <= value[0] <= value[1]:
        raise ValueError(f"expected [fewest, most] layers, got {value!r}")
    return tuple(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig:
    """Which stacks of layers may be proposed."""

    __pydantic_config__ = _STRICT

    sources: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    depth: Annotated[Any, BeforeValidator(_span)] = None
    repeats: Annotated[int, Field(ge=0)] = 1
    order: Order = "passes"
    scale: Annotated[Any, BeforeValidator(_range)] = 1.0
    after: Path | None = None
    winners: Count = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceConfig:
    """Which recipes may be proposed."""

    __pydantic_config__ = _STRICT

    methods: Annotated[
        tuple[str, ...], Field(min_length=1), BeforeValidator(_known(METHODS, "method"))
    ] = ("task_arithmetic",)
    choose: Literal["model", "group"] = "model"
    depth: Annotated[Any, BeforeValidator(_depth)] = "layers"
    parts: Annotated[Any, BeforeValidator(_parts)] = (LAYER_PARTS,)
    ends: Ends | None = None
    ranges: RangesField = field(default_factory=dict)
    overrides: tuple[OverrideConfig, ...] = ()
    lines: Annotated[Any, BeforeValidator(_lines)] = None
    stack: StackConfig | None = None

    def cut(self) -> tuple[Depth, tuple[tuple[str, ...], ...], Ends]:
        """Depth, parts and ends; unless said otherwise, a global space is one single group."""
        single = self.depth == "global" and len(self.parts) == 1
        return self.depth, self.parts, self.ends or ("with_layers" if single else "together")


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetConfig:
    """When to stop; the first that is reached. None at all: 100 trials."""

    __pydantic_config__ = _STRICT

    trials: Count | None = None
    hours: Annotated[float, Field(gt=0)] | None = None
    until: Annotated[int | None, BeforeValidator(_clock)] = None

    def deadline(self, now: datetime.datetime) -> datetime.datetime | None:
        """The moment after which no trial starts, for a search that starts or resumes `now`."""
        ends = []
        if self.hours is not None:
            ends.append(now + datetime.timedelta(hours=self.hours))
        if self.until is not None:
            clock = now.replace(
                hour=self.until // 60, minute=self.until % 60, second=0, microsecond=0
            )
            ends.append(clock if clock > now else clock + datetime.timedelta(days=1))
        return min(ends, default=None)

    def trial_limit(self) -> int | None:
        """Finished trials after which none starts; None: only time counts."""
        return 100 if self.trials is self.hours is self.until is None else self.trials


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentsConfig:
    """How documents are split."""

    __pydantic_config__ = _STRICT

    holdout: Share = 0.5
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """One search; the types of the file's keys."""

    __pydantic_config__ = _STRICT

    base: ModelField
    sources: Annotated[dict[str, ModelField], Field(min_length=1)]
    tasks: Annotated[dict[str, TaskConfig | None], Field(min_length=1)]
    space: SpaceConfig = field(default_factory=SpaceConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    documents: DocumentsConfig = field(default_factory=DocumentsConfig)
    sampler: Annotated[str, BeforeValidator(_known((*SAMPLERS, "auto"), "sampler"))] = "auto"
    finalists: Count = 3
    seed: int = 0
    dtype: DType | None = None
    device: str = "auto"
    placement: Placement | None = None
    compile: Compile = "auto"
    batch_size: Count = 64
    threads: Count | None = None
    storage: str | None = None
    output: Path | None = None
    trust_remote_code: bool = False
    allow_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """A configuration and the file it came from."""

    file: Path
    config: SearchConfig

    @property
    def folder(self) -> Path:
        """Relative paths in the file are relative to this folder."""
        return self.file.parent

    def output(self) -> Path:
        """The run folder: `output`, or results/NAME in the working folder."""
        if self.config.output is None:
            return Path("results") / self.file.stem
        return self.folder / self.config.output


def parse_budget(
    *, trials: int | None = None, hours: float | None = None, until: str | None = None
) -> BudgetConfig | None:
    """A budget from the command line; None where nothing is given."""
    given = {"trials": trials, "hours": hours, "until": until}
    given = {key: value for key, value in given.items() if value is not None}
    return validate(given, BudgetConfig, name="command line") if given else None


def load_config(path: Path | str) -> LoadedConfig:
    """Reads and checks a search configuration; loads no model and no task.

    Raises UserError that lists every mistake found.
    """
    file = Path(path)
    config = read_yaml(file, SearchConfig)
    problems = [f"{file}: {problem}" for problem in _problems(config, file.parent)]
    if problems:
        raise UserError("\n".join(problems))
    return LoadedConfig(file=file, config=config)


def _problems(config: SearchConfig, folder: Path) -> list[str]:
    """Mistakes that only show when keys are seen together."""
    problems = []
    for name in config.sources:
        if name in (BASE, MERGED) or not re.fullmatch(r"[\w.-]+", name):
            problems.append(
                f"sources.{name}: expected a name of letters, digits, '_', '-', '.' other than "
                f"{BASE!r} and {MERGED!r}"
            )
    problems += _stack_problems(config)
    for name in config.space.methods:
        method, count = METHODS[name], len(config.sources)
        if count + 1 < method.minimum_sources:
            problems.append(
                f"space.methods: {name} merges at least {method.minimum_sources} models; got "
                f"{count} source"
            )
    for name, task in config.tasks.items():
        if task is not None and task.folder is not None and not (folder / task.folder).is_dir():
            problems.append(
                f"tasks.{name}.folder: {task.folder} is no folder ({folder / task.folder})"
            )
    used = {row.name for name in config.space.methods for row in METHODS[name].parameters}
    for place, ranges in [
        ("space.ranges", config.space.ranges),
        *((f"space.overrides.{i}.ranges", o.ranges) for i, o in enumerate(config.space.overrides)),
    ]:
        for name in sorted(set(ranges) - used):
            problems.append(
                f"{place}.{name}: no method of space.methods uses it; {did_you_mean(name, used)}"
            )
    return problems


def _stack_problems(config: SearchConfig) -> list[str]:
    stack = config.space.stack
    if stack is None:
        return []
    problems = []
    if config.space != SpaceConfig(stack=stack):
        problems.append(
            "space.stack: cannot stand beside other keys of space; search their parameters first "
            "and name that run as space.stack.after"
        )
    known = [*config.sources, BASE, *([] if stack.after is None else [MERGED])]
    for name in stack.sources or ():
        if name not in known:
            problems.append(f"space.stack.sources: {name!r}: {did_you_mean(name, known)}")
    if config.device == "spread":
        problems.append("device: spread: a stack needs the live model on one device")
    return problems


def range_of(ranges: dict[str, Any], name: str) -> Range | None:
    """A range as the space wants it; None where the file says nothing."""
    span = ranges.get(name)
    return (float(span[0]), float(span[1])) if isinstance(span, list) else span

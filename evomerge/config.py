"""The configuration: one YAML file into frozen, typed objects, checked before anything is loaded.

Every key with its unit and default is listed in configs/README.md. Mistakes are UserErrors that
give the path in the file, the value, what was expected, and the nearest valid name.
"""

import datetime
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from evomerge.architectures import LAYER_PARTS, PARTS
from evomerge.config_objectives import ConstraintConfig, ObjectivesField, objective_problems
from evomerge.config_tasks import TaskConfig, task_problems
from evomerge.config_values import (
    read_clock,
    read_depth,
    read_known,
    read_lines,
    read_list,
    read_model,
    read_notify,
    read_parts,
    read_range,
    read_ranges,
    read_span,
    read_switch,
)
from evomerge.errors import UserError, did_you_mean
from evomerge.files import is_there
from evomerge.merging.placement import Placement
from evomerge.methods import METHODS
from evomerge.methods.compiled import Compile
from evomerge.recipe import BASE, MERGED, UNION, Calibration, DType, Model, parse_layers
from evomerge.searching.groups import Depth, Ends
from evomerge.searching.guidance import GuideKind
from evomerge.searching.objective import GoalKind, Normalise
from evomerge.searching.racing import EarlyStopping
from evomerge.searching.samplers import SAMPLERS
from evomerge.searching.stacks import Order
from evomerge.typed_yaml import read_yaml, validate

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

ModelField = Annotated[Model, BeforeValidator(read_model)]
RangesField = Annotated[dict[str, Annotated[Any, Field()]], BeforeValidator(read_ranges)]
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverrideConfig:
    """Other ranges for some groups: those whose layers and parts all lie within."""

    __pydantic_config__ = _STRICT

    ranges: RangesField
    layers: Annotated[tuple[int, ...] | None, BeforeValidator(parse_layers)] = None
    parts: Annotated[tuple[str, ...] | None, BeforeValidator(read_known(PARTS, "part"))] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig:
    """Which stacks of layers may be proposed."""

    __pydantic_config__ = _STRICT

    sources: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    depth: Annotated[Any, BeforeValidator(read_span)] = None
    repeats: Annotated[int, Field(ge=0)] = 1
    order: Order = "passes"
    scale: Annotated[Any, BeforeValidator(read_range)] = 1.0
    after: Path | None = None
    winners: Count = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceConfig:
    """Which recipes may be proposed."""

    __pydantic_config__ = _STRICT

    methods: Annotated[
        tuple[str, ...], Field(min_length=1), BeforeValidator(read_known(METHODS, "method"))
    ] = ("task_arithmetic",)
    choose: Literal["model", "group"] = "model"
    depth: Annotated[Any, BeforeValidator(read_depth)] = "layers"
    parts: Annotated[Any, BeforeValidator(read_parts)] = (LAYER_PARTS,)
    ends: Ends | None = None
    ranges: RangesField = field(default_factory=dict)
    overrides: tuple[OverrideConfig, ...] = ()
    lines: Annotated[Any, BeforeValidator(read_lines)] = None
    switch_off: bool = False
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
    documents: Count | None = None
    hours: Annotated[float, Field(gt=0, le=100_000)] | None = None
    until: Annotated[int | None, BeforeValidator(read_clock)] = None

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
        """Finished trials after which none starts; None: only the other limits count."""
        others = (self.documents, self.hours, self.until)
        return 100 if self.trials is None and others == (None, None, None) else self.trials


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentsConfig:
    """How documents are split."""

    __pydantic_config__ = _STRICT

    holdout: Share = 0.5
    seed: Seed = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStoppingConfig:
    """When a trial is given up."""

    __pydantic_config__ = _STRICT

    level: Annotated[float, Field(gt=0, lt=0.5)] = EarlyStopping().level
    halving: Literal[False] | Annotated[int, Field(ge=2)] = EarlyStopping().halving
    minimum: Count = EarlyStopping().minimum
    blocks: Annotated[int, Field(ge=2)] = EarlyStopping().blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """One search; the types of the file's keys."""

    __pydantic_config__ = _STRICT

    base: ModelField
    sources: Annotated[dict[str, ModelField], Field(min_length=1)]
    tasks: Annotated[dict[str, TaskConfig | None], Field(min_length=1)]
    calibration: Calibration | None = None
    space: SpaceConfig = field(default_factory=SpaceConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    documents: DocumentsConfig = field(default_factory=DocumentsConfig)
    objective: GoalKind | None = None
    normalise: Literal["auto"] | Normalise = "auto"
    objectives: ObjectivesField = field(default_factory=dict)
    constraints: dict[str, ConstraintConfig] = field(default_factory=dict)
    early_stopping: Annotated[EarlyStoppingConfig | None, BeforeValidator(read_switch)] = field(
        default_factory=EarlyStoppingConfig
    )
    guide: GuideKind = "gradient"
    sampler: Annotated[str, BeforeValidator(read_known((*SAMPLERS, "auto"), "sampler"))] = "auto"
    start_from: Annotated[tuple[Path, ...], BeforeValidator(read_list)] = ()
    finalists: Count | None = None
    stop_on_plateau: bool = False
    trial_minutes: Annotated[float, Field(gt=0, le=100_000)] | None = None
    seed: Seed = 0
    dtype: DType | None = None
    vocabulary: str = BASE
    device: str = "auto"
    placement: Placement | None = None
    compile: Compile = "auto"
    batch_tokens: Count | None = None
    threads: Count | None = None
    storage: str | None = None
    notify: Annotated[str | None, BeforeValidator(read_notify)] = None
    output: Path | None = None
    trust_remote_code: bool = False
    allow_code: bool = False
    generation: Literal["own", "vllm"] = "own"

    def finalist_count(self) -> int:
        """How many are scored on the holdout beside the baselines; of several objectives, at most
        so many of the front."""
        return self.finalists or (12 if self.objectives else 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """A configuration and the file it came from."""

    file: Path
    config: SearchConfig
    place: Path | None = None
    """Of a kept copy: the folder of the file that it was copied from."""

    @property
    def folder(self) -> Path:
        """Relative paths in the file are relative to this folder."""
        return self.place or self.file.parent

    def output(self) -> Path:
        """The run folder: `output`, or results/NAME in the working folder."""
        if self.config.output is None:
            return Path("results") / self.file.stem
        return self.folder / self.config.output


def parse_budget(
    *,
    trials: int | None = None,
    documents: int | None = None,
    hours: float | None = None,
    until: str | None = None,
) -> BudgetConfig | None:
    """A budget from the command line; None where nothing is given."""
    given = {"trials": trials, "documents": documents, "hours": hours, "until": until}
    given = {key: value for key, value in given.items() if value is not None}
    return validate(given, BudgetConfig, name="command line") if given else None


def load_config(
    path: Path | str, *, allow_code: bool = False, place: Path | None = None
) -> LoadedConfig:
    """Reads and checks a search configuration; loads no model and no task.

    allow_code: as if the file's key of that name were true. place: the folder that relative paths
    start from, where that is not the file's. Raises UserError that lists every mistake found.
    """
    file = Path(path)
    config = read_yaml(file, SearchConfig)
    loaded = LoadedConfig(file=file, config=config, place=place)
    problems = [f"{file}: {problem}" for problem in _problems(config, loaded.folder)]
    if problems:
        raise UserError("\n".join(problems))
    return replace(loaded, config=replace(config, allow_code=True)) if allow_code else loaded


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
    problems += objective_problems(config.objectives, config.constraints, config.tasks)
    if config.vocabulary not in (known := [BASE, UNION, *config.sources]):
        hint = did_you_mean(config.vocabulary, known)
        problems.append(f"vocabulary: {config.vocabulary!r}: {hint}")
    for name in config.space.methods:
        method, count = METHODS[name], len(config.sources)
        # Methods of a few operands may also be given the base as one of them.
        operands = count + (method.maximum_sources is not None)
        if operands < method.minimum_sources:
            problems.append(
                f"space.methods: {name} merges at least {method.minimum_sources} models; got "
                f"{count} source"
            )
    problems += _calibration_problems(config, folder)
    problems += [
        f"start_from: {path} is not there; expected the run folder of a search, or a recipe.yaml"
        for path in config.start_from
        if not is_there(folder / path)
    ]
    for name, task in config.tasks.items():
        problems += task_problems(name, task or TaskConfig(), folder)
    if config.generation == "vllm" and (config.space.stack or config.device == "spread"):
        which = "space.stack" if config.space.stack else "device: spread"
        problems.append(
            f"generation: vllm: the engine holds one model of fixed depth on one device; {which} "
            "needs generation: own"
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
        problems += _outside(place, ranges, config.space.methods)
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


def _outside(place: str, ranges: dict[str, Any], methods: tuple[str, ...]) -> list[str]:
    """Ranges beyond what one of the methods takes: methods may differ in a parameter's limits."""
    return [
        f"{place}.{row.name}: got {end!r}, expected a number from {row.minimum:g} to "
        f"{row.maximum:g} for {method}"
        for method in methods
        for row in METHODS[method].parameters
        if row.name in ranges
        for end in (ranges[row.name] if isinstance(ranges[row.name], list) else [ranges[row.name]])
        if not row.minimum <= end <= row.maximum
    ]


def _calibration_problems(config: SearchConfig, folder: Path) -> list[str]:
    needing = [n for n in config.space.methods if "activations" in METHODS[n].needs]
    if config.calibration is not None:
        file = folder / config.calibration.file
        if not is_there(file) or not file.is_file():
            return [f"calibration.file: {config.calibration.file} is no file; expected a text"]
    elif needing:
        return [
            f"space.methods: {needing[0]} needs a text on which the sources are run; add "
            "`calibration: {file: text.txt}` with a text like the task's documents"
        ]
    return []

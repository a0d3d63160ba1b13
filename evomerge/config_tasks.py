"""The `tasks` of a configuration: what is scored, by which scorer, and the keys of each."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from evomerge.errors import did_you_mean
from evomerge.files import is_there

LM_EVAL = "lm_eval"
BITS_PER_BYTE = "bits_per_byte"
OWN_FUNCTION = "module:function"
_KEYS = {
    LM_EVAL: {
        *("folder", "metric", "filter", "num_fewshot", "chat_template", "system_instruction"),
    },
    BITS_PER_BYTE: {"file"},
    OWN_FUNCTION: {"documents", "higher_is_better"},
}
"""Scorer -> keys that it alone takes; all take the others."""
_REQUIRED = {BITS_PER_BYTE: "file", OWN_FUNCTION: "documents"}


def read_scorer(value: Any) -> Any:
    """A name of a scorer, or `module:function`; None stands for lm_eval."""
    known = (LM_EVAL, BITS_PER_BYTE)
    if (
        value is not None
        and value not in known
        and not re.fullmatch(r"\w+(\.\w+)*:\w+", str(value))
    ):
        raise ValueError(
            f"unknown scorer {value!r}; {did_you_mean(str(value), known)}, or module:function for "
            "a Python function of your own"
        )
    return None if value == LM_EVAL else value


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """One task and what of it counts."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    scorer: Annotated[str | None, BeforeValidator(read_scorer)] = None
    folder: Path | None = None
    file: Path | None = None
    documents: Path | None = None
    metric: str | None = None
    filter: str | None = None
    higher_is_better: bool | None = None
    weight: Annotated[float, Field(ge=0)] = 1.0
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    chat_template: bool = False
    system_instruction: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None

    @property
    def kind(self) -> str:
        """LM_EVAL, BITS_PER_BYTE or OWN_FUNCTION."""
        if self.scorer is None:
            return LM_EVAL
        return OWN_FUNCTION if ":" in self.scorer else self.scorer


def task_problems(name: str, task: TaskConfig, folder: Path) -> Iterator[str]:
    """Keys that this scorer does not take or lacks, and files that are not there; relative paths
    count from the folder."""
    others = set().union(*_KEYS.values()) - _KEYS[task.kind]
    for field in fields(TaskConfig):
        if field.name in others and getattr(task, field.name) != field.default:
            takes = ", ".join(sorted(_KEYS[task.kind]))
            yield (
                f"tasks.{name}.{field.name}: the scorer {task.scorer or LM_EVAL} has no such key; "
                f"beside weight and limit it takes {takes}"
            )
    required = _REQUIRED.get(task.kind)
    if required is not None:
        file = getattr(task, required)
        if file is None:
            yield f"tasks.{name}.{required}: is missing; {task.scorer} needs one"
        elif not is_there(folder / file) or not (folder / file).is_file():
            yield f"tasks.{name}.{required}: {file} is no file ({folder / file})"
    if task.folder is not None and not (
        is_there(folder / task.folder) and (folder / task.folder).is_dir()
    ):
        yield f"tasks.{name}.folder: {task.folder} is no folder ({folder / task.folder})"

"""A run's journal, read without Optuna: quickly, in little memory, and ever on while it grows.

Optuna's own reading makes objects of all parameters and metrics: of 10,000 trials with 200
parameters and 100 tasks, gigabytes. Here parameters and recipes stay in the file, where their lines
begin is kept, and metrics become columns. The format is that of Optuna's journal: one JSON object a
line, told apart by its operation code.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from evomerge.dashboard.columns import Columns
from evomerge.searching.record import POINTS, RECIPE, RESULT, TrialRecord, read_trial, with_later

_STUDY_ATTRIBUTE, _CREATE, _PARAMETER, _STATE, _ATTRIBUTE = 2, 4, 5, 6, 8
_OPERATION = re.compile(rb'\{"op_code":(\d+),')
_METHODS = re.compile(rb'\\"method\\":\\"(\w+)\\"')
"""In a recipe, which stands in its line as text."""
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(slots=True)
class _Entry:
    """What is kept of a trial."""

    state: TrialState
    values: list[float] | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    """Without the recipe, and without the metrics of the result."""
    methods: tuple[str, ...] = ()
    recipe: int | None = None
    """Where the line that has it begins, in bytes."""
    result: int | None = None
    first_parameter: int | None = None
    created: int = 0


class JournalIndex:
    """The trials of one journal file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attributes: dict[str, Any] = {}
        """Of the study."""
        self.columns = Columns()
        self.read = 0
        """Bytes."""
        self._entries: list[_Entry] = []
        self._records: list[TrialRecord] = []
        self._changed: set[int] = set()
        self._later: dict[int, Mapping[str, Any]] = {}

    @property
    def share(self) -> float:
        """Of the file, how much was read: 0 to 1."""
        return min(1.0, self.read / max(1, self.path.stat().st_size))

    def refresh(self, limit: int | None = None) -> bool:
        """Reads what was written since, at most about so many bytes; whether there was anything.

        A last line that is still being written is left for the next time.
        """
        start = self.read
        if not self.path.is_file():
            raise OSError(f"{self.path} is no ordinary file")
        with self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._take(line, self.read)
                self.read += len(line)
                if limit is not None and self.read - start >= limit:
                    break
        return self.read > start

    def records(self) -> list[TrialRecord]:
        """All trials, by number, without recipes, and without those metrics that were scored
        during the trial: `columns` has these. `full` has everything."""
        for number in sorted(self._changed):
            record = self._light(number)
            if number < len(self._records):
                self._records[number] = record
            else:
                self._records.append(record)
        self._changed.clear()
        return list(self._records)

    def methods(self, number: int) -> tuple[str, ...]:
        """The methods of the trial's recipe, each once."""
        return self._entries[number].methods

    def full(self, number: int) -> TrialRecord:
        """One trial with its recipe and all metrics; KeyError if there is none of that number."""
        if not 0 <= number < len(self._entries):
            raise KeyError(f"there is no trial {number}; there are {len(self._entries)}")
        entry = self._entries[number]
        attributes = dict(entry.attributes)
        for name, place in ((RECIPE, entry.recipe), (RESULT, entry.result)):
            if place is not None:
                attributes[name] = _attributes(self._line(place))[name]
        record = read_trial(_frozen(number, entry, attributes))
        record = replace(record, parameters=self._parameters_of(number))
        later = self._later.get(number)
        return record if later is None else with_later(record, later)

    def parameters(self, numbers: list[int] | None = None) -> dict[int, dict[str, Any]]:
        """Trial number -> its parameters of the space, read anew; of trials that have any."""
        wanted = range(len(self._entries)) if numbers is None else numbers
        return {number: own for number in wanted if (own := self._parameters_of(number))}

    def _parameters_of(self, number: int) -> dict[str, Any]:
        """A proposal's parameters stand before its recipe, or in the line that made the trial."""
        entry = self._entries[number]
        if entry.first_parameter is None:
            row = orjson.loads(self._line(entry.created))
            kinds = {n: json_to_distribution(k) for n, k in row.get("distributions", {}).items()}
            return {n: kinds[n].to_external_repr(v) for n, v in row.get("params", {}).items()}
        found: dict[str, Any] = {}
        with self.path.open("rb") as file:
            file.seek(entry.first_parameter)
            for line in file:
                operation = _OPERATION.match(line)
                code = -1 if operation is None else int(operation[1])
                if code not in (_PARAMETER, _STATE, _ATTRIBUTE) or _trial_of(line) != number:
                    continue  # another process's
                if code != _PARAMETER:
                    break
                row = orjson.loads(line)
                kind = _distribution(row["distribution"])
                found[row["param_name"]] = kind.to_external_repr(row["param_value_internal"])
        return found

    def _line(self, place: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(place)
            return file.readline()

    def _take(self, line: bytes, place: int) -> None:
        match = _OPERATION.match(line)
        operation = -1 if match is None else int(match[1])
        if operation == _PARAMETER:  # by far the most lines
            entry = self._entries[_trial_of(line)]
            if entry.first_parameter is None:
                entry.first_parameter = place
            return
        if operation not in (_STUDY_ATTRIBUTE, _CREATE, _STATE, _ATTRIBUTE):
            return
        if operation == _ATTRIBUTE and b'"user_attr":{"recipe":' in line[:300]:
            self._take_recipe(_trial_of(line), line, place)
            return
        row = orjson.loads(line)
        if operation == _STUDY_ATTRIBUTE:
            self._take_study(row["user_attr"])
        elif operation == _CREATE:
            self._create(row, line, place)
        elif operation == _STATE:
            self._take_state(row)
        else:
            self._take_attributes(row["trial_id"], row["user_attr"], place)

    def _take_study(self, attributes: Mapping[str, Any]) -> None:
        self.attributes |= attributes
        for name, value in attributes.items():
            prefix, _, number = name.partition(":")
            if prefix == POINTS and "metrics" in value:
                trial = int(number)
                if not 0 <= trial < len(self._entries):
                    raise ValueError(f"{name}: there are {len(self._entries)} trials")
                self._later[trial] = value
                self.columns.put(trial, value["metrics"])
                self._changed.add(trial)

    def _create(self, row: Mapping[str, Any], line: bytes, place: int) -> None:
        number = len(self._entries)
        state = TrialState(row.get("state", TrialState.RUNNING.value))
        values = row.get("values")
        if values is None and row.get("value") is not None:
            values = [row["value"]]
        self._entries.append(_Entry(state=state, values=values, created=place))
        self._changed.add(number)
        attributes = dict(row.get("user_attrs") or {})
        if attributes.pop(RECIPE, None) is not None:
            self._take_recipe(number, line, place)
        self._take_attributes(number, attributes, place, made=True)

    def _take_recipe(self, number: int, line: bytes, place: int) -> None:
        entry = self._entries[number]
        entry.recipe = place
        entry.methods = tuple(dict.fromkeys(m.decode() for m in _METHODS.findall(line)))

    def _take_state(self, row: Mapping[str, Any]) -> None:
        entry = self._entries[row["trial_id"]]
        if entry.state in _ENDED:
            return  # as Optuna reads it: the first end counts
        entry.state = TrialState(row["state"])
        if row["values"] is not None:
            entry.values = row["values"]
        self._changed.add(row["trial_id"])

    def _take_attributes(
        self, number: int, attributes: Mapping[str, Any], place: int, *, made: bool = False
    ) -> None:
        entry = self._entries[number]
        if entry.state in _ENDED and not made:
            return
        for name, value in attributes.items():
            if name == RESULT:
                entry.result = place
                metrics = value.pop("metrics", None)
                if metrics is not None:
                    self.columns.put(number, metrics)
                    value = {**value, "metrics": []}
            entry.attributes[name] = value
        self._changed.add(number)

    def _light(self, number: int) -> TrialRecord:
        entry = self._entries[number]
        record = read_trial(_frozen(number, entry, entry.attributes))
        later = self._later.get(number)
        return record if later is None else with_later(record, later)


def _trial_of(line: bytes) -> int:
    start = line.index(b'"trial_id":') + 11
    return int(line[start : line.index(b",", start)])


@lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _attributes(line: bytes) -> Mapping[str, Any]:
    row = orjson.loads(line)
    found: Mapping[str, Any] = row.get("user_attr") or row["user_attrs"]
    return found


def _frozen(number: int, entry: _Entry, attributes: Mapping[str, Any]) -> FrozenTrial:
    """Only what `read_trial` looks at."""
    begun = None if entry.state == TrialState.WAITING else _EPOCH
    return FrozenTrial(
        trial_id=number,
        number=number,
        state=entry.state,
        value=None,
        values=entry.values,
        datetime_start=begun,
        datetime_complete=_EPOCH if entry.state in _ENDED else None,
        params={},
        distributions={},
        user_attrs=dict(attributes),
        system_attrs={},
        intermediate_values={},
    )


_EPOCH = datetime.fromtimestamp(0)

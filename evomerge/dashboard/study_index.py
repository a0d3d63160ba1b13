"""What the pages need of a study, and the reading of one that lies in a database."""

import json
from typing import Any, Protocol

from optuna.storages import BaseStorage

from evomerge.dashboard.columns import Columns
from evomerge.scoring.scorecard import to_json
from evomerge.searching.record import TrialRecord, read_trials
from evomerge.searching.study import find_study


class Index(Protocol):
    """Reads a study on and on."""

    attributes: dict[str, Any]
    """Of the study."""
    columns: Columns

    @property
    def share(self) -> float:
        """How much of what is there was read: 0 to 1."""
        ...

    def refresh(self, limit: int | None = None) -> bool:
        """Reads further, at most about so many bytes; whether there was anything new."""
        ...

    def records(self) -> list[TrialRecord]:
        """All trials, by number; without recipes, nor metrics that are in `columns`."""
        ...

    def methods(self, number: int) -> tuple[str, ...]:
        """Of a trial's recipe, each once."""
        ...

    def full(self, number: int) -> TrialRecord:
        """One trial with everything; KeyError where there is none of that number."""
        ...

    def parameters(self, numbers: list[int] | None = None) -> dict[int, dict[str, Any]]:
        """Trial number -> its parameters of the space, of trials that have any."""
        ...


class StudyIndex:
    """A study in any of Optuna's storages, read through Optuna: all anew each time."""

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        self.attributes: dict[str, Any] = {}
        self.columns = Columns()
        self.share = 0.0
        self._records: list[TrialRecord] = []

    def refresh(self, limit: int | None = None) -> bool:
        """See `Index`; knows no limit."""
        study = find_study(self._storage)
        if study is None:
            return False
        attributes, records = study.user_attrs, read_trials(study)
        self.share = 1.0
        if attributes == self.attributes and records == self._records:
            return False
        known = len(self._records)
        for record in records:
            if record.number >= known or record != self._records[record.number]:
                self.columns.put(record.number, to_json(record.metrics))
        self.attributes, self._records = attributes, records
        return True

    def records(self) -> list[TrialRecord]:
        """See `Index`."""
        return list(self._records)

    def methods(self, number: int) -> tuple[str, ...]:
        """See `Index`."""
        rules = json.loads(self._records[number].recipe_text or "{}").get("rules", ())
        return tuple(dict.fromkeys(rule["method"] for rule in rules))

    def full(self, number: int) -> TrialRecord:
        """See `Index`."""
        if not 0 <= number < len(self._records):
            raise KeyError(f"there is no trial {number}; there are {len(self._records)}")
        return self._records[number]

    def parameters(self, numbers: list[int] | None = None) -> dict[int, dict[str, Any]]:
        """See `Index`."""
        wanted = self._records if numbers is None else [self._records[n] for n in numbers]
        return {record.number: dict(record.parameters) for record in wanted if record.parameters}

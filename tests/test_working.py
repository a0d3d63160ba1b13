"""Who scores which finalist."""

from dataclasses import dataclass, field
from pathlib import Path

import optuna

from evomerge.searching.run_folder import RunFolder
from evomerge.working import claim


@dataclass
class Worker:
    """Knows who is dead."""

    name: str
    dead: set[str] = field(default_factory=set)

    def leads(self) -> bool:
        return False

    def alive(self, worker: str) -> bool:
        return worker not in self.dead

    def leave(self) -> None:
        pass


def test_a_finalist_is_scored_by_one_worker_and_fails_when_three_died_of_it(tmp_path: Path) -> None:
    study, folder, dead = optuna.create_study(), RunFolder(tmp_path), set[str]()
    one, two, three, four = (Worker(name, dead) for name in ("one", "two", "three", "four"))
    assert claim(study, folder, one, "holdout:7")
    assert claim(study, folder, one, "holdout:7")
    assert not claim(study, folder, two, "holdout:7")
    assert claim(study, folder, two, "holdout:8")
    dead |= {"one"}
    assert claim(study, folder, two, "holdout:7")
    dead |= {"two"}
    assert claim(study, folder, three, "holdout:7")
    dead |= {"three"}
    assert not claim(study, folder, four, "holdout:7")
    assert study.user_attrs["holdout:7"] == {"failure": "the worker died 3 times on it"}
    assert claim(study, folder, four, "holdout:8")

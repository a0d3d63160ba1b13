"""The study's journal under many writers, kills and full disks."""

import os
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage

from evomerge.errors import UserError
from evomerge.searching.journal import RunJournal, StudyStorage


def study(path: Path) -> tuple[optuna.Study, RunJournal]:
    journal = RunJournal(path)
    storage = StudyStorage(journal)
    return optuna.create_study(storage=storage, study_name="x", load_if_exists=True), journal


def in_processes(path: Path, count: int, trials: int) -> None:
    """Each proposes, and tells, so many trials."""
    children = []
    for _ in range(count):
        child = os.fork()
        if child == 0:
            own, journal = study(path)
            for _ in range(trials):
                with journal.together():
                    trial = own.ask()
                    for name in "abcdefgh":
                        trial.suggest_float(name, 0, 1)
                own.tell(trial, 0.5)
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0


def test_processes_write_whole_proposals_and_lose_none(tmp_path: Path) -> None:
    study(tmp_path / "j")
    in_processes(tmp_path / "j", count=3, trials=20)
    trials = study(tmp_path / "j")[0].trials
    assert [trial.number for trial in trials] == list(range(60))
    assert all(len(trial.params) == 8 and trial.state.name == "COMPLETE" for trial in trials)


def test_finished_trials_share_the_space_and_are_those_that_optuna_reads(tmp_path: Path) -> None:
    own, journal = study(tmp_path / "j")
    other, _ = study(tmp_path / "j")
    own.enqueue_trial({"a": 0.25}, user_attrs={"wide": float("inf")})
    for number in range(100):
        trial = own.ask()
        trial.suggest_float("a", 0, 1)
        if number % 2:
            trial.suggest_categorical("b", ["long x", "long y"])
        trial.report(float("nan"), 1)
        assert own.get_trials(deepcopy=False)[-1].params == trial.params
        own.tell(trial, number)
    for reader in (own, other, study(tmp_path / "j")[0]):
        trials = reader.get_trials(deepcopy=False)
        assert len({id(trial.distributions) for trial in trials}) == 2
        assert trials[0].user_attrs["wide"] == float("inf")
        names = {id(name) for trial in trials for name in trial.params}
        assert len(names) == 3  # of the two spaces
        choices = [trial.params["b"] for trial in trials if "b" in trial.params]
        assert len({id(choice) for choice in choices}) == len(set(choices)) == 2
    plain = optuna.load_study(study_name="x", storage=JournalStorage(journal))
    for found, known in zip(own.trials, plain.trials, strict=True):
        assert vars(found) | {"intermediate_values": 0} == vars(known) | {"intermediate_values": 0}


def test_others_see_a_proposal_in_whole_or_not_at_all(tmp_path: Path) -> None:
    own, journal = study(tmp_path / "j")
    other, _ = study(tmp_path / "j")
    with journal.together():
        own.ask().suggest_float("a", 0, 1)
        assert len(own.trials) == 1
        assert not other.trials
    (seen,) = other.trials
    assert seen.params == own.trials[0].params


def test_half_a_line_is_cut_off_by_whoever_writes_next(tmp_path: Path) -> None:
    own, _ = study(tmp_path / "j")
    own.tell(own.ask(), 0.5)
    with (tmp_path / "j").open("ab") as file:
        file.write(b'{"op_code": 5, "worker_id": "' + b"x" * 100_000)
    again, _ = study(tmp_path / "j")
    assert len(again.trials) == 1
    again.tell(again.ask(), 0.7)
    assert [trial.value for trial in study(tmp_path / "j")[0].trials] == [0.5, 0.7]
    assert [trial.value for trial in own.trials] == [0.5, 0.7]


def test_a_damaged_entry_is_told_with_its_number(tmp_path: Path) -> None:
    own, _ = study(tmp_path / "j")
    own.tell(own.ask(), 0.5)
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    (tmp_path / "j").write_bytes(lines[0] + b"{damaged\n" + b"".join(lines[1:]))
    with pytest.raises(UserError, match=r"j: entry 2 is damaged"):
        study(tmp_path / "j")

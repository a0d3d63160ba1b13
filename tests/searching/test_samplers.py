"""Contracts that every sampler keeps, and what is particular to a few."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from evomerge.searching.journal import RunJournal
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.samplers import NO_CATEGORIES, SAMPLERS, SpaceSampler
from evomerge.searching.samplers.climb import levels_of, sparse, stretches_at, tied
from evomerge.searching.samplers.coarse_to_fine import CoarseToFine
from evomerge.searching.samplers.coordinates import Coordinates, Past, Point, losses
from evomerge.searching.samplers.trust_region import fit

Space = dict[str, BaseDistribution]
NUMBERS: Space = {
    f"layers {layer}/weight/{source}": FloatDistribution(0.0, 1.2)
    for layer in range(3)
    for source in "xy"
}
MIXED: Space = {
    **NUMBERS,
    "all/density": FloatDistribution(0.1, 1.0, step=0.01),
    "layers 0/method": CategoricalDistribution(("linear", "ties", "slerp")),
    "layers 1/method": CategoricalDistribution(("linear", "ties", "slerp")),
}


def space_for(name: str) -> Space:
    return NUMBERS if name in NO_CATEGORIES else MIXED


def value(parameters: Mapping[str, Any]) -> float:
    """Highest, 0, at 0.4 and `ties`."""
    return sum(
        -((x - 0.4) ** 2) if isinstance(x, float) else -0.1 * (x != "ties")
        for x in parameters.values()
    )


def study_with(name: str, space: Space, storage: Any = None, seed: int = 3) -> optuna.Study:
    study = optuna.create_study(direction="maximize", storage=storage, study_name="s")
    study.sampler = SpaceSampler(SAMPLERS[name](seed), space)
    return study


def run(study: optuna.Study, space: Space, trials: int) -> None:
    """Every fifth trial is pruned with its value as the estimate, every seventh fails."""
    for _ in range(trials):
        trial = study.ask(space)
        if trial.number % 7 == 6:
            study.tell(trial, state=TrialState.FAIL)
        elif trial.number % 5 == 4:
            trial.report(value(trial.params), step=40)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value(trial.params))


@pytest.mark.parametrize("name", SAMPLERS)
def test_proposals_lie_in_the_space_beside_baselines_that_do_not(name: str) -> None:
    space = space_for(name)
    study = study_with(name, space)
    study.tell(study.ask(), 0.7)  # a baseline without parameters, better than all others
    study.enqueue_trial({key: kind.low if isinstance(kind, FloatDistribution) else "linear"
                         for key, kind in space.items()})  # fmt: skip
    run(study, space, 26)
    for trial in study.trials[1:]:
        assert trial.params.keys() == space.keys()
        for key, kind in space.items():
            assert kind._contains(kind.to_internal_repr(trial.params[key])), key
    different = {tuple(trial.params.values()) for trial in study.trials[1:]}
    assert len(different) >= 22, "NSGA may repeat a parent"


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_resume_proposes_what_would_have_been_proposed_anyway(name: str, tmp_path: Path) -> None:
    space = space_for(name)
    study = study_with(name, space, RunFolder(tmp_path).storage(None))
    run(study, space, 24)
    folder = RunFolder(tmp_path)
    again = optuna.load_study(study_name="s", storage=folder.storage(None))
    again.sampler = SpaceSampler(SAMPLERS[name](3), space)
    with folder.together():
        resumed = again.ask(space).params
    assert again.ask().number == 25
    alone = study_with(name, space)
    run(alone, space, 24)
    assert resumed == alone.ask(space).params


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "random"])
def test_every_sampler_improves_on_its_start_and_on_chance(name: str) -> None:
    space = space_for(name)
    bests = {}
    for sampler in (name, "random"):
        found = []
        for seed in range(1 if name == "gp" else 3):
            study = study_with(sampler, space, seed=seed)
            run(study, space, 40 if name == "gp" else 110)
            found.append(study.best_value)
        bests[sampler] = np.mean(found)
    assert bests[name] > bests["random"]


@pytest.mark.parametrize("name", ["cma_es", "catcma", "evolution_strategy", "trust_region"])
def test_the_best_baseline_is_where_a_search_begins(name: str) -> None:
    space = NUMBERS
    study = study_with(name, space)
    for start, score in ((0.2, 0.0), (0.9, 1.0), (0.5, 0.5)):
        study.enqueue_trial(dict.fromkeys(space, start))
        study.tell(study.ask(space), score)
    assert not any(trial.system_attrs.get(f"{name}:note") for trial in study.trials)
    points = []
    for _ in range(8):
        trial = study.ask(space)
        points.append(list(trial.params.values()))
        study.tell(trial, -1.0)
    assert abs(np.mean(points) - 0.9) < 0.12


@pytest.mark.parametrize("name", ["evolution_strategy", "coarse_to_fine", "trust_region"])
def test_an_estimate_is_never_where_a_search_begins(name: str) -> None:
    study = study_with(name, NUMBERS)
    for start, score in ((0.2, 0.5), (0.9, 1.0)):
        study.enqueue_trial(dict.fromkeys(NUMBERS, start))
        trial = study.ask(NUMBERS)
        if score > 0.5:
            trial.report(score, step=20)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, score)
    assert abs(np.mean(list(study.ask(NUMBERS).params.values())) - 0.2) < 0.25


@pytest.mark.parametrize(
    "name", ["cma_es", "catcma", "evolution_strategy", "coarse_to_fine", "trust_region"]
)
def test_limits_are_kept_before_values_are_raised(name: str) -> None:
    study = study_with(name, NUMBERS)
    for number in range(90):
        trial = study.ask(NUMBERS)
        first = float(trial.params["layers 0/weight/x"])
        trial.set_constraint("guard", first - 0.3)
        if number % 6 == 5:
            trial.report(first, step=20)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, first)
    late = [trial.params["layers 0/weight/x"] for trial in study.trials[-20:]]
    assert 0.05 < float(np.median(late)) < 0.45


def test_losses_rank_broken_limits_last() -> None:
    point = Point(numbers=np.zeros(1), choices=np.zeros(0, np.int64))
    trials = [
        Past(number=n, point=point, loss=loss, broken=broken, mark=None)
        for n, (loss, broken) in enumerate([(-9.0, 2.0), (3.0, 0.0), (-9.0, 1.0), (1.0, 0.0)])
    ]
    assert np.argsort(losses(trials)).tolist() == [3, 1, 2, 0]


def test_cma_es_counts_generations_through_a_restart() -> None:
    study = study_with("cma_es", NUMBERS)
    for _ in range(2):
        study.sampler = SpaceSampler(SAMPLERS["cma_es"](0), NUMBERS)
        run(study, NUMBERS, 50)
    generations = [trial.system_attrs["cma_es:note"] for trial in study.trials]
    assert generations == sorted(generations)
    assert generations[-1] >= 6


def test_catcma_bears_equal_losses() -> None:
    study = study_with("catcma", MIXED)
    for _ in range(30):
        study.tell(study.ask(MIXED), 0.0)
    assert study.trials[-1].system_attrs["catcma:note"][0] >= 1


def test_tied_steps_move_stretches_of_a_family_alike() -> None:
    families = [np.arange(0, 16, 2), np.arange(1, 16, 2)]
    seen = set()
    for seed in range(60):
        move = tied(np.random.default_rng(seed), families, 16)
        for family in families:
            seen.add(len(np.unique(move[family])))
    assert seen <= {1, 2, 4, 8}
    assert {1, 2, 4, 8} <= seen
    assert levels_of(np.arange(6)) == 4
    assert [stretches_at(level, np.arange(6)) for level in range(4)] == [1, 2, 4, 6]


def test_steps_have_a_length_of_one_per_coordinate() -> None:
    lengths = [np.sum(sparse(np.random.default_rng(n), 50) ** 2) for n in range(300)]
    assert np.mean(lengths) == pytest.approx(50, rel=0.15)


def test_levels_that_gain_are_tried_most() -> None:
    sampler = CoarseToFine(Coordinates(NUMBERS))
    point = Point(numbers=np.full(6, 0.5), choices=np.zeros(0, np.int64))
    loss, random = 1.0, np.random.default_rng(0)
    sampler.learn(Past(number=0, point=point, loss=loss, mark=None))
    levels = []
    for number in range(1, 120):
        new, level = sampler.propose(random)
        levels.append(level)
        loss -= 0.01 * (level == 2)
        worse = 0.0 if level == 2 else 1.0
        sampler.learn(Past(number=number, point=new, loss=loss + worse, mark=level))
    assert set(levels) == {0, 1, 2}
    assert levels[20:].count(2) > 0.8 * len(levels[20:])


def test_the_model_predicts_a_smooth_function_and_knows_where_it_does_not() -> None:
    random = np.random.default_rng(0)
    points = random.random((60, 2))
    values = np.sin(3 * points[:, 0]) + points[:, 1] ** 2

    def squares(first: Any, second: Any) -> Any:
        return ((first[:, None] - second[None]) ** 2).sum(2)

    model = fit(squares(points, points), values, 2)
    places = np.array([[0.3, 0.3], [0.7, 0.2], [4.0, 4.0]])
    mean, deviation = model.predict(squares(places, points))
    spread = values.std()
    truth = (np.sin(3 * places[:2, 0]) + places[:2, 1] ** 2 - values.mean()) / spread
    assert mean[:2] == pytest.approx(truth, abs=0.1)
    assert deviation[2] > 5 * deviation[:2].max()


def test_a_proposal_is_written_in_one_piece(tmp_path: Path) -> None:
    journal = RunJournal(tmp_path / "j")
    journal.append_logs([{"n": 0}])
    with journal.together():
        journal.append_logs([{"n": 1}])
        journal.append_logs([{"n": 2}])
        assert (tmp_path / "j").read_text().count("\n") == 1
        assert [entry["n"] for entry in journal.read_logs(0)] == [0, 1, 2]
        assert [entry["n"] for entry in journal.read_logs(2)] == [2]
    journal.append_logs([{"n": 3}])
    assert [entry["n"] for entry in RunJournal(tmp_path / "j").read_logs(1)] == [1, 2, 3]


def test_a_proposal_that_fails_midway_is_written_as_far_as_it_came(tmp_path: Path) -> None:
    journal = RunJournal(tmp_path / "j")

    def fail() -> None:
        with journal.together():
            journal.append_logs([{"n": 4}])
            raise ValueError("midway")

    with pytest.raises(ValueError, match="midway"):
        fail()
    assert [entry["n"] for entry in journal.read_logs(0)] == [4]

"""Early stopping: blocks of documents, the race against the incumbent, halving, samplers."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState

from evomerge.errors import UserError
from evomerge.scoring.documents import stratified_blocks
from evomerge.scoring.scorecard import DocumentScores, Metric
from evomerge.searching.objective import Objective, Target, choose_goal
from evomerge.searching.racing import EarlyStopping, Incumbent, Race, Racing, Stop, difference
from evomerge.searching.record import RESULT
from evomerge.searching.recovery import take_up_interrupted
from evomerge.searching.samplers import SAMPLERS, SpaceSampler
from evomerge.searching.study import best_complete, finished

NAME = "exact_match,none"
SIZES = {"first": 120, "second": 80}
OBJECTIVE = Objective(
    targets={"first": Target(metric=NAME), "second": Target(metric=NAME, weight=2.0)}
)
Values = Mapping[str, Any]
"""Task -> one value per document."""


def scored(values: Values, documents: Mapping[str, list[int]]) -> dict[str, DocumentScores]:
    found = {}
    for task, numbers in documents.items():
        ordered = tuple(sorted(numbers))
        chosen = {NAME: tuple(float(values[task][n]) for n in ordered)}
        found[task] = DocumentScores(documents=ordered, values=chosen)
    return found


def whole(values: Values) -> dict[str, DocumentScores]:
    return scored(values, {task: list(range(len(own))) for task, own in values.items()})


def metrics(values: Values, *, higher: bool = True) -> dict[str, Metric]:
    return {
        task: Metric(
            task=task,
            name=NAME,
            value=float(np.mean(own)),
            standard_error=None,
            documents=len(own),
            higher_is_better=higher,
        )
        for task, own in values.items()
    }


def incumbent(values: Values, *, higher: bool = True) -> Incumbent:
    found = metrics(values, higher=higher)
    return Incumbent(number=3, value=OBJECTIVE.value(found), metrics=found, scores=whole(values))


def blocks(generator: np.random.Generator, count: int = 8) -> Any:
    orders = {task: generator.permutation(size).tolist() for task, size in SIZES.items()}
    return stratified_blocks(orders, count)


def run(race: Race, values: Values, parts: Any) -> Stop | None:
    """Scores the blocks as `score_blocks` does."""
    documents: dict[str, list[int]] = {}
    for block in parts:
        for task, numbers in block.items():
            documents.setdefault(task, []).extend(numbers)
        if not race.go_on(scored(values, documents)):
            break
    return race.stop


def disagreeing(
    generator: np.random.Generator, share: float, surplus: int
) -> tuple[Values, Values]:
    """Binary scores of an incumbent and a candidate that disagree on a share of the documents, and
    of which the candidate has `surplus` more right in every task."""
    theirs, ours = {}, {}
    for task, size in SIZES.items():
        pairs = max(1, round(size * share / 2))
        one = np.array([0.0] * (pairs + surplus) + [1.0] * pairs)
        other = 1 - one
        agreed = generator.integers(0, 2, size - len(one)).astype(float)
        order = generator.permutation(size)
        theirs[task] = np.concatenate([one, agreed])[order]
        ours[task] = np.concatenate([other, agreed])[order]
    return theirs, ours


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 70), min_size=1),
    st.integers(1, 9),
    st.integers(0, 5),
)
def test_blocks_are_stratified_disjoint_complete_and_fixed(
    sizes: dict[str, int], count: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    orders = {task: generator.permutation(size).tolist() for task, size in sizes.items()}
    parts = stratified_blocks(orders, count)
    assert parts == stratified_blocks(orders, count)
    for task, order in orders.items():
        own = [block.get(task, ()) for block in parts]
        assert [number for part in own for number in part] == order
        assert all(len(part) in (len(order) // count, -(-len(order) // count)) for part in own)
    assert all(part for block in parts for part in block.values())


def test_no_block_is_smaller_than_the_minimum_and_few_documents_are_one_block() -> None:
    rules = EarlyStopping(minimum=20, blocks=8)
    assert [rules.count(n) for n in (14, 39, 40, 100, 160, 5000)] == [1, 1, 2, 5, 8, 8]
    assert rules.rungs(8) == {2}
    assert EarlyStopping(halving=2).rungs(8) == {1, 2, 4}
    assert EarlyStopping(halving=False).rungs(8) == frozenset()
    assert "off: 39 search documents" in rules.sentence(39)


@pytest.mark.parametrize("higher", [True, False])
def test_a_clearly_worse_candidate_stops_early_an_equal_or_better_one_never(higher: bool) -> None:
    generator = np.random.default_rng(0)
    parts = blocks(generator)
    good = {task: (generator.random(size) < 0.7).astype(float) for task, size in SIZES.items()}
    bad = {task: values * (generator.random(len(values)) < 0.4) for task, values in good.items()}
    if not higher:
        good, bad = ({t: 1 - v for t, v in values.items()} for values in (good, bad))
    racing = Racing(EarlyStopping(), OBJECTIVE, parts)
    stop = run(racing.race(incumbent(good, higher=higher)), bad, parts)
    assert stop is not None
    assert stop.reason == "race"
    assert stop.documents <= 75
    assert stop.share == stop.documents / 200
    worth = OBJECTIVE.value(metrics(bad, higher=higher))
    assert stop.estimate == pytest.approx(worth, abs=0.2)
    # Poor ones fill the rung, and then good ones: neither may stop who is not behind.
    for number in range(8):
        racing.add(number, whole(bad if number < 4 else good), metrics(good, higher=higher))
    assert run(racing.race(incumbent(bad, higher=higher)), good, parts) is None
    thirds = {task: np.round(values / 3, 3) for task, values in good.items()}  # no exact floats
    rounded = {task: values.astype(np.float32) for task, values in thirds.items()}
    assert run(racing.race(incumbent(rounded, higher=higher)), thirds, parts) is None


@pytest.mark.parametrize("share", [0.03, 0.15, 0.5])
@pytest.mark.parametrize("surplus", [0, 1])
def test_a_race_prunes_what_would_have_won_at_most_at_its_level(share: float, surplus: int) -> None:
    generator = np.random.default_rng(1)
    rules = EarlyStopping(level=0.1, halving=False)
    pruned = 0
    for _ in range(400):
        theirs, ours = disagreeing(generator, share, surplus)
        parts = blocks(generator)
        racing = Racing(rules, OBJECTIVE, parts)
        pruned += run(racing.race(incumbent(theirs)), ours, parts) is not None
    assert pruned <= 0.1 * 400


def test_the_estimate_is_unbiased_and_its_error_honest() -> None:
    generator = np.random.default_rng(2)
    theirs, ours = disagreeing(generator, 0.4, 7)
    true = OBJECTIVE.value(metrics(ours)) - OBJECTIVE.value(metrics(theirs))
    opponent = incumbent(theirs)
    found, errors = [], []
    for _ in range(2000):
        first, second, *_ = blocks(generator)
        seen = {task: [*first[task], *second[task]] for task in SIZES}
        estimate = difference(scored(ours, seen), opponent, OBJECTIVE)
        assert estimate is not None
        found.append(estimate.value)
        errors.append(estimate.error)
    spread = float(np.std(found))
    assert np.mean(found) == pytest.approx(true, abs=4 * spread / sqrt(len(found)))
    assert 0.97 * spread <= sqrt(np.mean(np.square(errors))) <= 1.15 * spread
    full = difference(whole(ours), opponent, OBJECTIVE)
    assert full is not None
    assert full.value == pytest.approx(true, abs=1e-9)
    assert full.error == 0


def test_halving_lets_only_the_best_quarter_of_a_rung_go_on() -> None:
    generator = np.random.default_rng(3)
    parts = blocks(generator)
    racing = Racing(EarlyStopping(halving=4, level=1e-200), OBJECTIVE, parts)  # no race
    levels = np.linspace(0.2, 0.8, 7)
    trials = [{task: np.full(size, level) for task, size in SIZES.items()} for level in levels]
    top = incumbent({task: np.full(size, 0.9) for task, size in SIZES.items()})
    noise = {task: np.where(np.arange(size) % 2, -0.7, 1.3) for task, size in SIZES.items()}
    assert run(racing.race(top), noise, parts) is None, "fewer than four others"
    for number, values in enumerate(trials):
        racing.add(number, whole(values), metrics(values))
    stop = run(racing.race(top), noise, parts)
    assert stop is not None
    assert stop.reason == "halving"
    assert stop.documents == sum(len(part) for block in parts[:2] for part in block.values())
    good = {task: values + 0.4 for task, values in noise.items()}
    assert run(racing.race(top), good, parts) is None


def test_metrics_that_are_no_means_are_refused() -> None:
    values = {task: np.arange(size) % 2.0 for task, size in SIZES.items()}
    racing = Racing(EarlyStopping(), OBJECTIVE, blocks(np.random.default_rng(0)))
    assert racing.refusal(incumbent(values)) is None
    perplexity = {**metrics(values), "second": metrics({"second": values["second"] + 1})["second"]}
    opponent = Incumbent(number=0, value=1.0, metrics=perplexity, scores=whole(values))
    assert "second" in str(racing.refusal(opponent))


@pytest.mark.parametrize("name", ["cma_es", "catcma", "tpe", "gp", "nsga2", "nsga3"])
def test_samplers_learn_from_a_pruned_trial_as_from_a_complete_one(name: str) -> None:
    box: dict[str, BaseDistribution] = {n: FloatDistribution(0, 1) for n in "abc"}

    def proposals(*, pruned: bool) -> list[dict[str, Any]]:
        study = optuna.create_study(direction="maximize")
        study.sampler = SpaceSampler(SAMPLERS[name](5), box)
        for _ in range(26):
            trial = study.ask(box)
            value = -sum((x - 0.3) ** 2 for x in trial.params.values())
            if pruned and trial.number % 3:
                trial.report(value, step=40)
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, value)
        return [trial.params for trial in study.trials]

    assert proposals(pruned=True) == proposals(pruned=False)


def test_a_trial_that_was_pruned_before_a_kill_is_told_so() -> None:
    study = optuna.create_study(direction="maximize")
    study.tell(study.ask(), 0.5)
    trial = study.ask()
    trial.report(0.7, step=40)
    trial.set_user_attr(RESULT, {"estimate": 0.7, "pruned": "race"})
    assert take_up_interrupted(study, lambda trial: False) == 0
    assert study.trials[1].state == TrialState.PRUNED
    assert len(finished(study)) == 2
    best = best_complete(study)
    assert best is not None
    assert best.number == 0


def test_a_goal_without_references_is_refused_or_gives_way() -> None:
    lacking = {"first": "log_probability,reference", "second": None}
    with pytest.raises(UserError, match=r"objective: smooth: .* 'second'"):
        choose_goal("smooth", OBJECTIVE, lacking.get, 3)
    goal = choose_goal(None, OBJECTIVE, lacking.get, 3, default="both")
    assert goal.kind == "metric"
    assert "'second'" in goal.reason
    assert choose_goal("metric", OBJECTIVE, lacking.get, 3).climbed == OBJECTIVE

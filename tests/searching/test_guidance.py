"""Steps along the gradient: where they lead, what they cost, and that a resume finds the way."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from evomerge import working
from evomerge.assemble import evaluator, prepare
from evomerge.checkpoints.hashes import HashCache
from evomerge.config import load_config
from evomerge.evaluator import Evaluator
from evomerge.report import read_run
from evomerge.scoring.scorecard import SMOOTH
from evomerge.searching.guidance import BACKWARD, Guide, Pace
from evomerge.verbs import search

Small = Callable[..., Path]
QUICK = Pace(documents=4, every=3, steps=6, patience=3)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "Guide", partial(Guide, pace=QUICK))


@pytest.mark.parametrize(
    ("depth", "method"),
    [("layers", "task_arithmetic"), ("{knots: 2}", "linear"), ("global", "dare_linear")],
)
def test_slopes_are_the_differences_of_the_smooth_objective(
    small: Small, tmp_path: Path, depth: str, method: str
) -> None:
    config = load_config(small(depth=depth, methods=method))
    bench = prepare(config, HashCache(tmp_path / "hashes.json"))
    evaluate, space, objective = evaluator(bench), bench.space, bench.goal.climbed
    documents = {task: own[:3] for task, own in bench.documents("search").items()}
    names = space.distributions()
    place = {name: 0.3 + 0.05 * n for n, name in enumerate(names)}
    place |= {name: 0.5 for name in names if "density" in name}
    recipe = space.recipe(place)
    found = evaluate.gradient(recipe, documents, objective.shares())
    slopes = space.slopes(recipe, found.slopes)
    assert set(slopes) == {name for name in names if "weight" in name}
    card, _ = evaluate(recipe, documents, kinds=frozenset({"smooth"}))
    for task, own in found.scores.items():
        assert own.documents == card.per_document[task].documents
        assert own.values[SMOOTH] == pytest.approx(card.per_document[task].values[SMOOTH], abs=1e-4)

    def value(name: str, by: float) -> float:
        moved = space.recipe({**place, name: place[name] + by})
        scores, _ = evaluate(moved, documents, kinds=frozenset({"smooth"}))
        return objective.value(objective.metrics(scores))

    for name in list(slopes)[::3]:
        difference = (value(name, 1e-3) - value(name, -1e-3)) / 2e-3
        assert slopes[name] == pytest.approx(difference, rel=0.02, abs=2e-3), name


@pytest.mark.usefixtures("quick")
def test_steps_are_trials_and_their_cost_counts(small: Small) -> None:
    outcome = search(small(trials=24, depth="layers"))
    report = read_run(outcome.folder)
    steps = [r for r in report.records if r.state == "step"]
    looks = [r for r in report.records if r.state == "complete" and r.step is not None]
    assert [r.step for r in steps] == list(range(6))
    assert [r.step for r in looks] == [3, 6]
    assert all(r.documents["smooth"] % BACKWARD == 0 for r in steps)
    assert report.pruned() == {} or set(report.pruned()) <= {"race", "halving"}
    start = max(r.value for r in report.records if r.baseline and r.value is not None)
    assert max(r.value for r in looks if r.value is not None) > start


@pytest.mark.usefixtures("quick")
def test_a_resume_takes_the_same_way(small: Small) -> None:
    whole_way = search(small(trials=22, depth="layers", name="one"))
    for trials in (15, 18, 22):
        parts = search(small(trials=trials, depth="layers", name="two"))
    first, second = (
        [r.fingerprint for r in read_run(o.folder).records if r.step is not None]
        for o in (whole_way, parts)
    )
    assert len(first) == 8
    assert first == second


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("guide: none\n", "as configured"),
        ("objective: metric\n", "the objective is the tasks' own metrics"),
    ],
)
def test_why_there_is_no_guidance_is_said(
    small: Small, text: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="evomerge"):
        outcome = search(small(text, trials=13))
    assert f"guidance: off: {reason}" in caplog.text
    assert not [r for r in read_run(outcome.folder).records if r.step is not None]


def test_methods_that_are_not_differentiable_end_guidance(
    small: Small, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="evomerge"):
        search(small(trials=17, methods="tsv"))
    assert "guidance ends: no baseline lies in the space" in caplog.text


@pytest.mark.usefixtures("quick")
def test_a_step_that_raises_ends_guidance_but_not_the_search(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("no way back through this layer")

    monkeypatch.setattr(Evaluator, "gradient", broken)
    report = read_run(search(small(trials=20)).folder)
    failed = [record for record in report.records if record.state == "failed"]
    assert [record.failure for record in failed] == ["RuntimeError: no way back through this layer"]
    assert report.guidance is not None
    assert "no way back" in report.guidance["end"]
    assert report.verdict is not None

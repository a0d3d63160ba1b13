"""Scales from base and sources, and limits: what is fixed once these are scored."""

from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState

from evomerge.errors import CandidateError, UserError
from evomerge.scoring.scorecard import DocumentScores, Metric
from evomerge.searching.constraints import Constraint, check_measured, violations
from evomerge.searching.objective import Objective, Scale, Target
from evomerge.searching.racing import EarlyStopping, Incumbent, Racing, difference
from evomerge.searching.references import choose_normalisation, make_constraints, scales_of
from evomerge.searching.samplers import SAMPLERS, SpaceSampler
from evomerge.searching.verdict import Scored, paired_gain

ACC, BITS = "acc,none", "bits_per_byte,none"
POINTS = Objective(
    targets={
        "quiz": Target(metric=ACC),
        "notes": Target(metric=BITS, weight=3.0),
        "guard": Target(metric=ACC, weight=0.0),
    }
)
NAMES = {task: target.metric for task, target in POINTS.targets.items()}


def candidate(**values: Any) -> Scored:
    """Task -> scores per document; of tasks left out, zeros."""
    values = {task: np.array(values.get(task, np.zeros(40)), dtype=np.float64) for task in NAMES}
    return Scored(
        metrics={
            task: Metric(
                task=task,
                name=NAMES[task],
                value=float(own.mean()),
                standard_error=float(own.std(ddof=1) / len(own) ** 0.5),
                documents=len(own),
                higher_is_better=NAMES[task] == ACC,
            )
            for task, own in values.items()
        },
        documents={
            task: DocumentScores(documents=tuple(range(len(own))), values={NAMES[task]: tuple(own)})
            for task, own in values.items()
        },
    )


RIGHT = (np.arange(40) < 10).astype(float)
BASE = candidate(quiz=RIGHT, notes=np.full(40, 1.5))
SOURCES = {
    "chat": candidate(quiz=(np.arange(40) < 30).astype(float), notes=np.full(40, 1.7)),
    "code": candidate(quiz=RIGHT, notes=np.full(40, 1.4)),
}


def test_share_makes_the_base_0_and_the_best_source_of_every_task_1() -> None:
    scales, notes = scales_of("share", POINTS, BASE, SOURCES)
    assert not notes
    assert scales["quiz"] == Scale(zero=0.25, unit=0.5)
    assert scales["notes"].zero == -1.5, "less is better"
    assert scales["notes"].unit == pytest.approx(0.1)
    scaled = replace(POINTS, scales=scales, normalise="share")
    assert scaled.value(BASE.metrics) == 0
    best = {"quiz": SOURCES["chat"].metrics["quiz"], "notes": SOURCES["code"].metrics["notes"]}
    assert scaled.value(best) == pytest.approx(1)
    assert scaled.unit == "share"


def test_spread_takes_the_largest_distance_up_or_down() -> None:
    scales, notes = scales_of("spread", POINTS, BASE, SOURCES)
    assert not notes
    assert scales["quiz"].unit == 0.5
    assert scales["notes"].unit == pytest.approx(0.2), "chat loses more than code gains"
    assert "guard" not in scales


def test_a_gain_within_noise_is_no_unit_and_the_notes_say_so() -> None:
    one_more = (np.arange(40) < 11).astype(float)
    lucky = {"chat": candidate(quiz=one_more, notes=np.full(40, 1.4))}
    scales, notes = scales_of("share", POINTS, BASE, lucky)
    noise = 1.96 * np.std(one_more - RIGHT, ddof=1) / 40**0.5
    assert scales["quiz"].unit == pytest.approx(noise)
    assert noise > 1 / 40
    assert len(notes) == 1
    assert notes[0].startswith("quiz: no source is above the base by more than noise (chat")
    worse = {**lucky, "code": candidate(quiz=np.zeros(40), notes=np.full(40, 1.5))}
    assert scales_of("share", POINTS, BASE, worse)[0]["quiz"].unit == 0.25
    same = {"chat": candidate(quiz=RIGHT, notes=np.full(40, 1.4))}
    scales, notes = scales_of("spread", POINTS, BASE, same)
    assert scales["quiz"].unit == 1
    assert "sources score as the base does" in notes[-1]


def test_auto_keeps_metrics_of_one_scale_as_they_are() -> None:
    def chosen(*metrics: str) -> str:
        targets = {str(n): Target(metric=metric) for n, metric in enumerate(metrics)}
        return choose_normalisation("auto", [Objective(targets=targets)])[0]

    assert chosen(ACC, "exact_match,strict-match", "acc_norm,none", "pass@1,none") == "raw"
    assert chosen(ACC, "prompt_level_strict_acc,none", "f1_macro,none") == "raw"
    assert chosen(BITS, BITS) == "raw"
    assert chosen("word_perplexity,none") == "raw"
    for other in (BITS, "word_perplexity,none", "bleu,none", "score,none", "accounting,none"):
        assert chosen(ACC, other) == "spread"
    assert choose_normalisation("share", [POINTS]) == ("share", "as configured")
    guarded = {"a": Target(metric=ACC), "b": Target(metric=BITS, weight=0.0)}
    assert choose_normalisation("auto", [Objective(targets=guarded)])[0] == "raw"


def test_race_and_verdict_have_the_scale_of_the_objective() -> None:
    generator = np.random.default_rng(0)
    scales = {"quiz": Scale(zero=0.25, unit=0.5), "notes": Scale(zero=-1.5, unit=0.1)}
    scaled = replace(POINTS, scales=scales, normalise="share")
    ours, theirs = (
        candidate(quiz=generator.integers(0, 2, 40), notes=generator.normal(1.5, 0.1, 40))
        for _ in range(2)
    )
    rival = Incumbent(
        number=0,
        value=scaled.value(theirs.metrics),
        metrics=theirs.metrics,
        scores=theirs.documents,
    )
    found = difference(ours.documents, rival, scaled)
    assert found is not None
    true = scaled.value(ours.metrics) - scaled.value(theirs.metrics)
    assert found.value == pytest.approx(true, abs=1e-5)
    assert abs(true) > 1.5 * abs(POINTS.value(ours.metrics) - POINTS.value(theirs.metrics))
    racing = Racing(EarlyStopping(), scaled, [{"quiz": range(40), "notes": range(40)}])
    seen = racing._value(ours.documents, ours.metrics, racing.blocks)
    assert seen == pytest.approx(scaled.value(ours.metrics), abs=1e-5)
    gain = paired_gain(ours, theirs, scaled, seed=0)
    assert gain.value == pytest.approx(true)
    assert gain.low is not None
    assert gain.high is not None
    assert gain.low < true < gain.high
    assert "% of gain (95% interval" in gain.sentence()


def test_violations_are_in_the_metrics_unit_and_know_its_direction() -> None:
    limits = make_constraints(
        {"guard": {"at_least": 0.5}, "notes": {"below_base": 10}, "quiz": {"below_base": -5}},
        POINTS,
    )
    assert not limits[1].settled
    limits = tuple(
        limit.with_base(BASE.metrics[limit.task].value if limit.kind == "below_base" else None)
        for limit in limits
    )
    metrics = candidate(
        guard=np.ones(40) * 0.4, notes=np.full(40, 1.57), quiz=np.full(40, 0.3)
    ).metrics
    assert violations(limits, metrics.values()) == {
        "guard": pytest.approx(0.1),
        "notes": pytest.approx(-0.03),
        "quiz": 0,
    }
    assert violations(limits, [metrics["guard"]]) is None
    assert Constraint(task="notes", metric=BITS, kind="at_most", amount=1.5).violation(
        metrics["notes"]
    ) == pytest.approx(0.07)
    broken = replace(metrics["guard"], value=float("nan"))
    with pytest.raises(CandidateError, match="'guard', which is under constraint"):
        check_measured(limits[:1], [broken])
    with pytest.raises(UserError, match=r"constraints.gard: did you mean 'guard'"):
        make_constraints({"gard": {"at_least": 0.5}}, POINTS)
    with pytest.raises(UserError, match=r"constraints.guard.at_least: got 60, and acc,none lies"):
        make_constraints({"guard": {"at_least": 60}}, POINTS)


@pytest.mark.parametrize(
    ("name", "trials"), [("cma_es", 80), ("tpe", 80), ("gp", 20), ("nsga2", 160)]
)
def test_samplers_turn_to_where_limits_are_kept(name: str, trials: int) -> None:
    """The best of the whole box, at 1, breaks the limit, which is kept up to 0.4."""
    box: dict[str, BaseDistribution] = {n: FloatDistribution(0, 1) for n in "ab"}

    def mean(*, constrained: bool) -> float:
        study = optuna.create_study(direction="maximize")
        study.sampler = SpaceSampler(SAMPLERS[name](3), box)
        for _ in range(trials):
            trial = study.ask(box)
            first = trial.params["a"]
            if trial.number % 7 == 6:  # a pruned trial, of which the limit is not known
                trial.report(first - 1, step=1)
                study.tell(trial, state=TrialState.PRUNED)
                continue
            if constrained:
                trial.set_constraint("guard", first - 0.4)
            study.tell(trial, first)
        return float(np.mean([trial.params["a"] for trial in study.trials[-trials // 4 :]]))

    assert mean(constrained=True) < 0.55
    assert mean(constrained=False) > 0.7

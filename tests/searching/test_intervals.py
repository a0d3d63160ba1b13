"""Intervals of paired differences: what they hold, alone and all at once; what documents show."""

import json
from collections.abc import Mapping
from math import sqrt

import numpy as np
import pytest
from scipy.stats import norm

from evomerge.scoring.scorecard import DocumentScores, Metric
from evomerge.searching.intervals import (
    Gain,
    Matrix,
    Scored,
    estimate,
    gains_by_task,
    gains_over_best,
    paired_gain,
    resample,
)
from evomerge.searching.objective import Objective, Target
from evomerge.searching.power import HOPED, critical_value, deviations, power
from evomerge.searching.verdict import Verdict, verdict_from_json

NAME = "exact_match,none"
OBJECTIVE = Objective(targets={"a": Target(metric=NAME), "b": Target(metric=NAME, weight=3.0)})
SHARES = OBJECTIVE.shares()


def scored(values: Mapping[str, Matrix], *, mean: bool = True) -> Scored:
    metrics = {
        task: Metric(
            task=task,
            name=NAME,
            value=float(own.mean()) if mean else float(own.max() + 1),
            standard_error=None,
            documents=len(own),
            higher_is_better=True,
        )
        for task, own in values.items()
    }
    documents = {
        task: DocumentScores(documents=tuple(range(len(own))), values={NAME: tuple(own.tolist())})
        for task, own in values.items()
    }
    return Scored(metrics=metrics, documents=documents)


def answers(generator: np.random.Generator, chance: float, counts: tuple[int, int]) -> Scored:
    """Right and wrong answers, of which a share `chance` is right."""
    pairs = zip(("a", "b"), counts, strict=True)
    return scored({t: (generator.random(n) < chance).astype(float) for t, n in pairs})


def test_the_resamples_are_those_of_a_plain_loop() -> None:
    generator = np.random.default_rng(3)
    tables = {"a": generator.normal(size=(9, 2)), "b": generator.integers(-1, 2, (14, 2)) * 1.0}
    found = resample(tables, SHARES, seed=5, resamples=4)
    again = np.random.default_rng(5)
    drawn = {
        t: table[again.integers(0, len(table), (4, len(table)))] for t, table in tables.items()
    }
    for row in range(4):
        for pair in range(2):
            strayed = variance = 0.0
            for task, table in tables.items():
                own = drawn[task][row, :, pair]
                squares = ((own - own.mean()) ** 2).sum() + np.abs(table[:, pair]).max() ** 2
                strayed += SHARES[task] * (own.mean() - table[:, pair].mean())
                variance += SHARES[task] ** 2 * squares / (len(own) * (len(own) - 1))
            assert found.draws[row, pair] == pytest.approx(abs(strayed) / sqrt(variance))
    value, error = estimate(tables, SHARES)
    assert np.array_equal(found.values, value)
    assert np.array_equal(found.errors, error)


@pytest.mark.parametrize("counts", [(12, 12), (60, 150)])
def test_intervals_hold_the_truth_as_often_as_they_say(counts: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    alone = together = 0
    draws = 400
    for seed in range(draws):
        # Three candidates beside one rival: differences that have the rival in common.
        rival = {t: (generator.random(n) < 0.6) * 1.0 for t, n in zip("ab", counts, strict=True)}
        tables = {
            t: ((generator.random((len(own), 3)) < 0.7) - own[:, None]) for t, own in rival.items()
        }
        found = resample(tables, SHARES, seed, resamples=500)
        held = [gain.low <= 0.1 <= gain.high for gain in found.each()]  # type: ignore[operator]
        alone += held[0]
        at_once = [gain.low <= 0.1 <= gain.high for gain in found.together()]  # type: ignore[operator]
        together += all(at_once)
    assert 0.925 < alone / draws < 0.98
    assert 0.925 < together / draws < 0.985


def test_a_difference_of_few_documents_is_no_certainty() -> None:
    same = {"a": np.ones(30), "b": np.ones(30)}
    once = {"a": np.r_[0.0, np.ones(29)], "b": np.ones(30)}
    gain = paired_gain(scored(same), scored(once), OBJECTIVE, seed=0)
    assert gain.value > 0
    assert not gain.shown
    none = paired_gain(scored(same), scored(same), OBJECTIVE, seed=0)
    assert (none.value, none.low, none.high) == (0, 0, 0)
    assert not none.shown
    assert not none.loss_shown


def test_a_clear_gain_is_shown_and_a_metric_that_is_no_mean_has_no_interval() -> None:
    generator = np.random.default_rng(1)
    good, bad = answers(generator, 0.8, (100, 100)), answers(generator, 0.5, (100, 100))
    up = paired_gain(good, bad, OBJECTIVE, seed=0)
    down = paired_gain(bad, good, OBJECTIVE, seed=0)
    assert up.shown
    assert down.loss_shown
    assert up.value == -down.value
    assert (up.low, up.high) == pytest.approx((-(down.high or 0), -(down.low or 0)))
    odd = scored({"a": np.ones(4), "b": np.ones(4)}, mean=False)
    gain = paired_gain(odd, odd, OBJECTIVE, seed=0)
    assert (gain.low, gain.high) == (None, None)
    assert "no interval" in gain.sentence()


def test_the_best_rival_counts_and_the_correction_is_for_what_was_chosen() -> None:
    generator = np.random.default_rng(2)
    winner, other = (answers(generator, chance, (80, 80)) for chance in (0.7, 0.65))
    rivals = [answers(generator, chance, (80, 80)) for chance in (0.2, 0.4, 0.6)]
    alone = paired_gain(winner, rivals[2], OBJECTIVE, seed=0)
    (among_rivals,) = gains_over_best([winner], rivals, OBJECTIVE, seed=0)
    among_all = gains_over_best([winner, other], rivals, OBJECTIVE, seed=0)
    assert among_rivals.value == alone.value == among_all[0].value
    lows = [gain.low or 0.0 for gain in (alone, among_rivals, among_all[0])]
    highs = [gain.high or 0.0 for gain in (alone, among_rivals, among_all[0])]
    # Rivals widen the upper end only; further finalists both.
    assert lows[0] == pytest.approx(lows[1], abs=0.01)
    assert lows[1] > lows[2]
    assert highs[0] < highs[1] < highs[2]
    assert among_all[1].value < among_all[0].value


def test_the_gain_over_the_best_rival_is_held_whichever_is_best() -> None:
    """Three finalists and four rivals, all equally good in truth: the gain over the best is 0."""
    generator = np.random.default_rng(6)
    held = better = 0
    for seed in range(300):
        chance = generator.random(100)[:, None]
        right = (generator.random((100, 7)) < chance).astype(float)
        pairs = (right[:, :3, None] - right[:, None, 3:]).reshape(100, 12)
        found = resample({"a": pairs}, {"a": 1.0}, seed, resamples=400).over_best(4)
        held += all((gain.low or 0) <= 0 <= (gain.high or 0) for gain in found)
        better += any(gain.shown for gain in found)
    assert held / 300 > 0.94
    assert better / 300 < 0.03


def test_worse_on_a_task_is_said_though_the_mean_is_better() -> None:
    generator = np.random.default_rng(4)
    n = 200
    ours = {"a": (generator.random(n) < 0.3) * 1.0, "b": (generator.random(n) < 0.9) * 1.0}
    theirs = {"a": (generator.random(n) < 0.7) * 1.0, "b": (generator.random(n) < 0.4) * 1.0}
    tasks = gains_by_task(scored(ours), scored(theirs), OBJECTIVE, seed=0)
    assert tasks["a"].loss_shown
    assert tasks["b"].shown
    gain = paired_gain(scored(ours), scored(theirs), OBJECTIVE, seed=0)
    verdict = Verdict(
        winner=9,
        opponent=3,
        gain=gain,
        optimism=0.01,
        score=0.75,
        source=1,
        source_gain=gain,
        tasks=tasks,
        comparisons=(2, 12),
    )
    assert verdict.conclusion == "better"
    lines = verdict.lines({9: "trial 9", 3: "ties", 1: "chat"})
    assert lines[0].startswith("Better: trial 9 beats the best baseline (ties) by +")
    assert lines[1].startswith("Worse on task a: -")
    assert lines[2].startswith("Over the best single source (chat): +")
    assert "optimism: its score on the search documents is +1.0 points" in lines[3]
    assert "corrected for 2 finalists, 12 baselines and 2 tasks." in lines[4]
    assert verdict_from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


def test_a_verdict_of_an_earlier_version_is_read() -> None:
    stored = {
        "winner": 4,
        "opponent": 2,
        "gain": {"value": 0.02, "low": -0.01, "high": 0.05},
        "optimism": 0.01,
        "optimism_unit": "points",
    }
    verdict = verdict_from_json(stored)
    assert verdict.conclusion == "no difference shown"
    assert verdict.lines({4: "trial 4", 2: "linear"}) == [
        "No difference shown between trial 4 and the best baseline (linear): +2.0 points "
        "(95% interval -1.0 to +5.0).",
        "Optimism: its score on the search documents is +1.0 points from that on the holdout.",
    ]
    worse = verdict_from_json({**stored, "gain": {"value": -0.02, "low": -0.03, "high": -0.01}})
    assert worse.conclusion == "worse"
    assert worse.sentence("x", "y").startswith("Worse: x is behind the best baseline (y): -2.0")


def test_the_correction_for_finalists_is_dunnetts() -> None:
    assert critical_value(1) == pytest.approx(norm.ppf(0.975), abs=0.02)
    # Two-sided, 5 %, infinitely many degrees of freedom: Dunnett 1964, table II.
    assert critical_value(3) == pytest.approx(2.35, abs=0.03)
    assert critical_value(9) == pytest.approx(2.69, abs=0.03)


def test_power_is_what_simulated_verdicts_show() -> None:
    counts, sd = {"a": 60, "b": 60}, {"a": 0.5, "b": 0.7}
    found = power(sd, SHARES, counts, counts, 1, probed=True)
    generator = np.random.default_rng(0)
    shown = 0
    for seed in range(300):
        tables = {
            t: found.holdout_gain + sd[t] * generator.standard_normal((60, 1)) for t in ("a", "b")
        }
        (gain,) = resample(tables, SHARES, seed, resamples=500).together()
        shown += gain.shown
    assert 0.70 < shown / 300 < 0.87
    enough = {task: round(60 * found.needed / 120) for task in counts}
    assert power(sd, SHARES, counts, enough, 1, probed=True).holdout_gain == pytest.approx(
        HOPED, rel=0.01
    )
    assert "a gain of 2 points would probably not be shown" in (found.warning() or "")
    many = {"a": 10**6, "b": 10**6}
    assert power(sd, SHARES, many, many, 1, probed=True).warning() is None


def test_noise_is_seen_in_a_probe_or_bounded() -> None:
    generator = np.random.default_rng(5)
    first, second = (answers(generator, 0.5, (400, 400)) for _ in range(2))
    seen = deviations(OBJECTIVE, (first, second))
    assert seen is not None
    assert seen["a"] == pytest.approx(sqrt(0.5), abs=0.05)
    assert deviations(OBJECTIVE, None) == {"a": sqrt(0.5), "b": sqrt(0.5)}
    same = deviations(OBJECTIVE, (first, first))
    assert same is not None
    assert 0 < same["a"] < 0.1
    unbounded = Objective(targets={"a": Target(metric="bits_per_byte,none")})
    assert deviations(unbounded, None) is None
    odd = scored({"a": np.ones(4), "b": np.ones(4)}, mean=False)
    assert deviations(OBJECTIVE, (odd, odd)) is None


def test_gains_are_written_in_points() -> None:
    assert Gain(value=0.02, low=0.005, high=0.035).sentence() == (
        "+2.0 points (95% interval +0.5 to +3.5)"
    )

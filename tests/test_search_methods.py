"""The rules of the benchmark of search methods: what counts, when it ends, what is compared."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from evomerge import load_config, search
from evomerge.architectures import PARTS
from evomerge.recipe import Model, Recipe
from evomerge.report import read_run
from evomerge.searching.groups import make_groups
from evomerge.searching.space import SearchSpace
from tests.benchmarks.search_methods import (
    configuration,
    result_of,
    run_seeds,
    setting_of,
    stopped_at,
)
from tests.benchmarks.search_methods_report import paired, read_results, report, share_reached
from tests.benchmarks.search_opponents import COEFFICIENTS, OPPONENTS, Contest, compete
from tests.benchmarks.search_peers import write_tasks
from tests.benchmarks.tables import interval, p_value

FAMILY = Path(__file__).parent.parent / "configs" / "quickstart"
SOURCES = ("x", "y")
SPACE = SearchSpace(
    template=Recipe(
        base=Model(path="b"), sources={name: Model(path=name) for name in SOURCES}, rules=()
    ),
    groups=make_groups("layers", (("attention", "mlp", "norm"),), "together", 3, set(PARTS)),
    methods=("task_arithmetic",),
    method_per_group=False,
    ranges=lambda cell, row: (row.low, row.high) if row.searched else float(row.default),
)


def weights(recipe: Recipe) -> list[float]:
    found = []
    for rule in recipe.rules:
        weight = rule.parameters["weight"]
        assert isinstance(weight, dict)
        found += [weight[name] for name in SOURCES]
    return found


def nearness(recipe: Recipe) -> float:
    """Highest, 0, where every weight is 0.9."""
    return -float(np.square(np.array(weights(recipe)) - 0.9).sum())


def contest(limit: int, seen: list[Recipe] | None = None) -> Contest:
    def value_of(recipe: Recipe) -> float:
        if seen is not None:
            seen.append(recipe)
        return nearness(recipe)

    return Contest(value_of=value_of, cost=7, limit=limit)


@pytest.mark.parametrize("name", OPPONENTS)
def test_an_opponent_spends_its_documents_and_no_more(name: str) -> None:
    seen: list[Recipe] = []
    found = contest(30 * 7 + 6, seen)
    compete(OPPONENTS[name], SPACE, found, 1)
    expected = {"grid": len(COEFFICIENTS), "uniform": 1}.get(name, 30)
    assert len(seen) == expected
    assert found.documents == 7 * expected
    best = max(range(expected), key=lambda place: nearness(seen[place]))
    assert found.incumbents[-1].recipe == seen[best]
    assert found.incumbents[-1].documents == 7 * (best + 1)
    values = [incumbent.value for incumbent in found.incumbents]
    assert values == sorted(set(values))


def test_opponents_follow_their_seed() -> None:
    def proposed(name: str, seed: int) -> list[str]:
        seen: list[Recipe] = []
        compete(OPPONENTS[name], SPACE, contest(70, seen), seed)
        return [recipe.fingerprint() for recipe in seen]

    for name in ("random", "cma_es", "tpe", "nsga2"):
        assert proposed(name, 3) == proposed(name, 3)
        assert proposed(name, 3) != proposed(name, 4)


def test_cma_es_starts_from_equal_weights_takes_absolute_values_and_climbs() -> None:
    seen: list[Recipe] = []
    compete(OPPONENTS["cma_es"], SPACE, contest(200 * 7, seen), 0)
    first = np.array([weights(recipe) for recipe in seen[:9]])
    assert abs(np.median(first) - 1 / len(SOURCES)) < 0.1
    assert 0.08 < first.std() < 0.25
    assert min(min(weights(recipe)) for recipe in seen) >= 0
    assert nearness(seen[-1]) > nearness(seen[0]) / 4


def test_the_incumbent_of_a_share_had_been_scored_by_then() -> None:
    found = contest(70)
    compete(OPPONENTS["random"], SPACE, found, 1)
    assert found.incumbent(0.05) is None
    assert found.incumbent(0.1) == found.incumbents[0]
    assert found.incumbent(1.0) == found.incumbents[-1]
    for share in (0.2, 0.5, 0.8):
        best = found.incumbent(share)
        assert best is not None
        later = [x for x in found.incumbents if x.value > best.value]
        assert best.documents <= 70 * share
        assert all(x.documents > 70 * share for x in later)


def test_a_method_names_keys_of_the_configuration() -> None:
    assert setting_of("evomerge") == {}
    assert setting_of("evomerge:metric:sampler=tpe:early_stopping=false") == {
        "objective": "metric",
        "sampler": "tpe",
        "early_stopping": False,
    }
    content = configuration(FAMILY, {"documents.seed": 3, "space.depth": "global"})
    assert content["documents"] == {"holdout": 0.8, "seed": 3}
    assert content["space"] == {"methods": ["task_arithmetic"], "depth": "global"}
    assert list(content["sources"]) == ["capital", "dial", "past", "sort7"]


def test_seeds_are_run_once_and_read_back(tmp_path: Path) -> None:
    families = tmp_path / "families"
    families.mkdir()
    (families / "damaged").symlink_to(FAMILY, target_is_directory=True)
    arguments = argparse.Namespace(
        families=families, out=tmp_path, kind="damaged", method="random", seeds=1, trials=2
    )
    run_seeds(arguments)
    path = result_of(tmp_path, "damaged", "random", 0)
    found = json.loads(path.read_text())
    assert found["documents"] == {"metric": found["limit"]}
    assert found["trials"] == 2
    assert found["at"].keys() == {"0.7", "1"}
    assert found["at"]["1"] == found["points"]
    before = path.stat().st_mtime_ns
    arguments.method = "uniform"
    arguments.seeds = 2
    run_seeds(arguments)
    assert path.stat().st_mtime_ns == before
    results = read_results(tmp_path, ["damaged", "null"], ["evomerge", "random", "uniform"])
    assert {method: list(rows) for method, rows in results["damaged"].items()} == {
        "random": [0],
        "uniform": [0, 1],
    }
    other = json.loads(path.read_text())
    path.write_text(json.dumps({**other, "limit": 1}))
    with pytest.raises(ValueError, match="expected one limit"):
        read_results(tmp_path, ["damaged"], ["random", "uniform"])


def test_what_a_stopped_search_exports_needs_no_later_scores(small: Callable[..., Path]) -> None:
    folder = search(small("objective: both\nsampler: random\n", trials=20)).folder
    goal = read_run(folder).goal
    nothing, base, last = stopped_at(folder, goal, [27, 28, 10**6])
    assert nothing is None
    assert base is not None
    assert base.baseline == "base"
    assert last is not None
    # The points of other leaders were scored only after the last trial.
    assert goal.points.value_of(last.metrics) is not None


def row(points: float) -> dict[str, Any]:
    return {
        "points": points,
        "search points": points + 1,
        "documents": {"metric": 90},
        "limit": 100,
        "trials": 9,
        "at": {"0.1": points - 8, "0.5": points - 4, "1": points},
    }


def test_methods_are_paired_by_seed_and_reach_levels_between_shares() -> None:
    own = {0: row(50.0), 1: row(52.0), 2: row(60.0)}
    rival = {0: row(47.0), 1: row(48.0)}
    assert paired(own, rival) == [3.0, 4.0]
    text = report({"damaged": {"evomerge": own, "cma_es": rival}})
    assert f"| evomerge minus cma_es | {interval([3.0, 4.0])} |" in text
    # Means 46, 50, 54 at 10, 50 and 100 %; the rival ends at 47.5.
    assert "evomerge has the final mean of cma_es (47.5 points) at: 25 %" in text
    assert share_reached({0.1: 5.0, 1.0: 7.0}, 4.0) == 0.1
    assert share_reached({0.1: 5.0, 1.0: 7.0}, 6.0) == pytest.approx(0.55)
    assert share_reached({0.1: 5.0, 1.0: 7.0}, 8.0) is None


def test_p_values_are_those_of_the_paired_t_test() -> None:
    first, second = [1.0, 4.0, 2.5, 6.0], [0.5, 3.0, 2.75, 4.0]
    values = [a - b for a, b in zip(first, second, strict=True)]
    assert p_value(values) == pytest.approx(ttest_rel(first, second).pvalue)
    assert p_value([1.0]) is None
    assert p_value([1.0, 1.0]) is None


def test_tasks_of_other_programs_hold_the_search_documents_alone(tmp_path: Path) -> None:
    write_tasks(FAMILY, tmp_path, {"past": [4, 2]})
    lines = (FAMILY / "tasks" / "past.jsonl").read_text().splitlines()
    assert (tmp_path / "past.jsonl").read_text().splitlines() == [lines[2], lines[4]]
    assert str(tmp_path / "past.jsonl") in (tmp_path / "past.yaml").read_text()
    assert not (tmp_path / "capital.yaml").exists()


def test_the_configuration_of_a_family_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "family.yaml"
    path.write_text(json.dumps(configuration(FAMILY, {"seed": 4})))
    config = load_config(path).config
    assert (config.seed, config.dtype, config.documents.holdout) == (4, "float32", 0.8)

"""Every mistake in a configuration names its place, the value, and what was expected."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from evomerge.config import BudgetConfig, load_config
from evomerge.errors import UserError
from evomerge.searching.groups import Knots

ROOT = Path(__file__).parent.parent


def test_the_quickstart_is_valid() -> None:
    loaded = load_config(ROOT / "configs" / "quickstart.yaml")
    assert list(loaded.config.sources) == ["capital", "dial", "sort7", "past"]
    assert loaded.output().resolve() == ROOT / "results" / "quickstart"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dtype: float32", "dtpye: float32", "dtpye: unknown key; did you mean 'dtype'"),
        ("dtype: float32", "dtype: fp32", "dtype: input should be 'float32', .* got 'fp32'"),
        ("methods: [task_arithmetic]", "methods: [tise]", "unknown method 'tise'; did you mean"),
        ("depth: global", "depth: {knot: 3}", "space.depth: expected global, layers"),
        ("trials: 16", "trials: 0", "budget.trials: .*greater than or equal to 1, got 0"),
        ("trials: 16", "until: 0730", "expected a clock time in quotes"),
        ("limit: 16", "limt: 16", "tasks.capital.limt: unknown key; did you mean 'limit'"),
        ("limit: 16", "weight: -1", "tasks.capital.weight: .*greater than or equal to 0, got -1"),
        ("depth: global", "ranges: {wieght: [0, 1]}", "did you mean 'weight'"),
        ("depth: global", "ranges: {weight: [1, 0]}", "low < high"),
        ("depth: global", "ranges: {density: [0, 1]}", "no method of space.methods uses it"),
        ("depth: global", "ranges: {density: [0, 2]}", "got 2, expected a number from 0 to 1"),
        ("finalists: 1", "sampler: cmaes", "unknown sampler 'cmaes'; did you mean 'cma_es'"),
        ("finalists: 1", "finalists: 1\nfinalists: 2", "the key stands twice"),
        ("base:", "bass:", "base: is missing"),
        (
            "[task_arithmetic], depth: global",
            "[della], ranges: {epsilon: [0, 2]}",
            "got 2, expected a number from 0 to 0.5 for della",
        ),
        ("[task_arithmetic]", "[regmean]", r"regmean needs a text .* `calibration: \{file: "),
        ("finalists: 1", "calibration: {file: no.txt}", "calibration.file: no.txt is no file"),
        ("finalists: 1", "calibration: {file: a, tokens: 0}", "calibration.tokens: .* got 0"),
        ("limit: 16", "scorer: bits_per_bite", "did you mean 'bits_per_byte'.*module:function"),
        ("limit: 16", "scorer: bits_per_byte", "tasks.capital.folder: .* has no such key"),
        ("limit: 16", "scorer: bits_per_byte", "tasks.capital.file: is missing"),
        ("limit: 16", "higher_is_better: false", "the scorer lm_eval has no such key; .* filter"),
        (
            "capital: {",
            "notes: {scorer: bits_per_byte, file: no.txt, num_fewshot: 1}\n  capital: {",
            r"tasks.notes.num_fewshot: the scorer bits_per_byte has no such key; .* it takes file",
        ),
        (
            "capital: {",
            "notes: {scorer: bits_per_byte, file: no.txt}\n  capital: {",
            r"tasks.notes.file: no.txt is no file \(.*/no.txt\)",
        ),
        (
            "capital: {",
            "mine: {scorer: 'mine:score', documents: no.jsonl}\n  capital: {",
            r"tasks.mine.documents: no.jsonl is no file \(.*/no.jsonl\)",
        ),
        ("capital: {", "mine: {scorer: 'mine.score'}\n  capital: {", "unknown scorer 'mine.score'"),
        ("finalists: 1", "generation: vlm", "generation: input should be 'own' or 'vllm'"),
        ("finalists: 1", "generation: vllm\ndevice: spread", "generation: vllm: .* device: spread"),
    ],
)
def test_mistakes_are_named(small: Callable[..., Path], old: str, new: str, message: str) -> None:
    path = small()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        load_config(path)


def test_missing_task_folder_is_named(small: Callable[..., Path]) -> None:
    path = small()
    path.write_text(path.read_text().replace("/tasks, limit: 16", "/taks, limit: 16"))
    with pytest.raises(UserError, match=r"tasks.capital.folder: .* is no folder"):
        load_config(path)


def test_lm_eval_is_the_scorer_unless_said_otherwise(small: Callable[..., Path]) -> None:
    path = small()
    plain = load_config(path).config
    path.write_text(path.read_text().replace("limit: 16", "limit: 16, scorer: lm_eval"))
    assert load_config(path).config == plain
    assert not plain.allow_code
    assert load_config(path, allow_code=True).config.allow_code


def test_depth_and_clock_are_typed(small: Callable[..., Path]) -> None:
    path = small(depth="{knots: 3}")
    assert load_config(path).config.space.depth == Knots(count=3)
    budget = BudgetConfig(until=7 * 60)
    evening, night = datetime(2026, 1, 1, 18), datetime(2026, 1, 2, 2)
    assert budget.deadline(evening) == budget.deadline(night) == datetime(2026, 1, 2, 7)
    assert BudgetConfig().trial_limit() == 100


@pytest.mark.parametrize(("method", "fits"), [("karcher", False), ("slerp", True), ("ties", True)])
def test_a_method_of_two_models_needs_two_sources_unless_the_base_may_be_one(
    small: Callable[..., Path], method: str, fits: bool
) -> None:
    path = small(methods=method)
    text = path.read_text()
    path.write_text("\n".join(line for line in text.splitlines() if "past: " not in line[:8]))
    if fits:
        assert list(load_config(path).config.sources) == ["dial"]
    else:
        with pytest.raises(UserError, match="karcher merges at least 2 models; got 1 source"):
            load_config(path)

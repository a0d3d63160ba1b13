"""A search over stacks of layers, alone and on the winner of a search before it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from evomerge import UserError, export, load_config, score, search
from evomerge.recipe import MERGED
from evomerge.report import read_run
from evomerge.run_picture import draw_run
from evomerge.verbs import check

Small = Callable[..., Path]


def stacked(small: Small, stack: str, *, trials: int, name: str) -> Path:
    path = small(trials=trials, name=name)
    text = path.read_text()
    start = text.index("space:")
    end = text.index("\n", start)
    path.write_text(f"{text[:start]}space: {{stack: {stack}}}{text[end:]}")
    return path


def test_stacks_alone_and_after_a_search_of_parameters(small: Small, tmp_path: Path) -> None:
    config = stacked(small, "{depth: [3, 6], scale: [0.6, 1.2]}", trials=19, name="alone")
    alone = search(config)
    assert alone.verdict is not None
    report = read_run(alone.folder)
    own = [record for record in report.ranked if record.baseline is None]
    depths = {len(record.recipe.layers_of_stack() or ()) for record in own}
    assert depths <= {3, 4, 5, 6}
    assert len(depths) > 1
    chosen = own[0]
    folder = export(alone.folder, tmp_path / "stack", trial=chosen.number)
    fresh = AutoModelForCausalLM.from_pretrained(folder)
    assert len(fresh.model.layers) == len(chosen.recipe.layers_of_stack() or ())
    rescored = {(m.task, m.name): m.value for m in score(folder, config).metrics}
    assert rescored.items() >= {(m.task, m.name): m.value for m in chosen.metrics}.items()

    first = search(small(trials=14, name="first"))
    best = read_run(first.folder).ranked[0]
    later = search(stacked(small, "{after: first}", trials=18, name="later"))
    report = read_run(later.folder)
    start = next(r for r in report.records if r.baseline == f"start {best.name}")
    assert start.value == best.value
    assert start.recipe.rules == best.recipe.rules
    proposed = [r for r in report.ranked if r.baseline is None]
    assert all(r.recipe.rules == best.recipe.rules for r in proposed)
    assert {p.source for r in proposed for p in r.recipe.stack or ()} <= {MERGED}
    draw_run(later.folder, tmp_path / "later.png")
    assert (tmp_path / "later.png").stat().st_size > 10_000


def test_the_plan_tells_of_stacks_and_counts_the_deepest(small: Small) -> None:
    deep = check(stacked(small, "{depth: [4, 8]}", trials=3, name="deep"), probe=False)
    plain = check(stacked(small, "{depth: [4, 4]}", trials=3, name="plain"), probe=False)
    assert "stacks of 4 to 8 layers of dial, past" in deep.bench.space.describe()
    sizes = deep.bench.memory.model_bytes, plain.bench.memory.model_bytes
    assert 1.5 < sizes[0] / sizes[1] < 2.0


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        ("{depth: 4}", r"space.stack.depth: expected \[fewest, most\]"),
        ("{sources: [dail]}", "space.stack.sources: 'dail': did you mean 'dial'"),
        ("{sources: [merged]}", "space.stack.sources: 'merged'"),
        ("{repeat: 2}", "did you mean 'repeats'"),
        ("{}, methods: [ties]", "cannot stand beside other keys of space"),
    ],
)
def test_mistakes_are_named(small: Small, stack: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(stacked(small, stack, trials=3, name="run"))


def test_a_run_that_is_not_there_is_named(small: Small) -> None:
    with pytest.raises(UserError, match="nowhere: holds no study"):
        check(stacked(small, "{after: nowhere}", trials=3, name="run"), probe=False)

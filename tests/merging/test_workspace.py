"""Recipes in a live model: A, B, A leaves A; mistakes and broken results are named."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evomerge.errors import CandidateError, UserError
from evomerge.merging.kept_statistics import KeptStatistics
from evomerge.merging.models import Models, open_models
from evomerge.merging.placement import Placement
from evomerge.merging.plan import merge_job, merged_tensors, plan_merge
from evomerge.merging.workspace import Workspace
from evomerge.recipe import BASE, Lines, Model, Recipe, Rule

FAMILY = Path(__file__).parent.parent.parent / "configs" / "quickstart" / "models"
TEMPLATE = Recipe(
    base=Model(path=str(FAMILY / "base")),
    sources={name: Model(path=str(FAMILY / name)) for name in ("dial", "past")},
    rules=(),
    dtype="bfloat16",
)
ALL = [
    ("linear", {}),
    ("slerp", {"t": 0.3}),
    ("task_arithmetic", {"weight": 0.4}),
    ("ties", {"density": 0.3}),
    ("dare_linear", {"density": 0.5}),
    ("dare_ties", {"density": 0.5}),
]


def recipe(*rules: Rule) -> Recipe:
    return dataclasses.replace(TEMPLATE, rules=rules)


def whole(method: str, **parameters: float) -> Recipe:
    return recipe(Rule(method=method, sources=("dial", "past"), parameters={**parameters}))


@pytest.fixture(scope="module")
def models() -> Models:
    return open_models(TEMPLATE)


@pytest.fixture(scope="module")
def workspace(models: Models) -> Workspace:
    return Workspace(models, dtype=torch.bfloat16, device=torch.device("cpu"))


@pytest.mark.parametrize(("method", "parameters"), ALL, ids=lambda value: str(value))
def test_live_model_and_writer_get_equal_bits(
    models: Models, workspace: Workspace, method: str, parameters: dict[str, float]
) -> None:
    asked = whole(method, **parameters)
    workspace.load(asked)
    assert workspace.holds == asked.fingerprint()
    live = workspace.model.state_dict()
    for name, tensor in merged_tensors(asked, models):
        assert torch.equal(live[name], tensor), name


def test_a_then_b_then_a_leaves_a(workspace: Workspace) -> None:
    first, second = whole("dare_ties", density=0.5), whole("linear")
    workspace.load(first)
    before = {name: value.clone() for name, value in workspace.model.state_dict().items()}
    workspace.load(second)
    assert any(not torch.equal(v, before[n]) for n, v in workspace.model.state_dict().items())
    workspace.load(first)
    assert all(torch.equal(v, before[n]) for n, v in workspace.model.state_dict().items())


def test_the_base_passes_through_unchanged(models: Models, workspace: Workspace) -> None:
    workspace.load(recipe(Rule(method="passthrough", sources=(BASE,))))
    live = workspace.model.state_dict()
    for slot in models.layout.slots:
        assert torch.equal(live[slot], models.read(BASE, slot))


def test_different_methods_in_different_groups(models: Models) -> None:
    mixed = recipe(
        Rule(method="passthrough", sources=("past",), layers=(0, 1)),
        Rule(method="linear", sources=("dial",), layers=(2, 3)),
        Rule(method="passthrough", sources=(BASE,), parts=("embeddings", "final_norm")),
    )
    merged = dict(merged_tensors(mixed, models))
    for slot, tensor in merged.items():
        layer = slot.split(".")[2] if ".layers." in slot else ""
        source = {"0": "past", "1": "past", "2": "dial", "3": "dial"}.get(layer, BASE)
        assert torch.equal(tensor, models.read(source, slot)), slot


def test_lines_scales_task_vectors_by_depth(models: Models) -> None:
    rule = Rule(method="task_arithmetic", sources=("dial",), lines=Lines(alpha=0.2, beta=0.6))
    expected = {"embed_tokens": 0.2, "layers.0": 0.2, "layers.1": 0.4, "layers.3": 0.8}
    expected["model.norm"] = 0.8
    seen = set()
    for slot, tensor in merged_tensors(recipe(rule), models):
        for words, scale in expected.items():
            if words in slot:
                base, dial = (models.read(name, slot).float() for name in (BASE, "dial"))
                close = (base + scale * (dial - base)).bfloat16()
                torch.testing.assert_close(tensor, close, atol=1e-6, rtol=1e-2)
                seen.add(words)
    assert seen == set(expected)
    again = Recipe.from_yaml(recipe(rule).to_yaml())
    assert again == recipe(rule)
    plain = dataclasses.replace(rule, lines=None)
    assert recipe(plain).fingerprint() != recipe(rule).fingerprint()


def test_infinite_weights_are_a_candidate_error_that_names_the_tensor(workspace: Workspace) -> None:
    with pytest.raises(CandidateError, match=r"tensor model\.embed_tokens\.weight .*infinite"):
        workspace.load(whole("task_arithmetic", weight=1e39))
    assert workspace.holds is None


LAYERS = Rule(method="linear", sources=("dial",), layers=(0, 1, 2, 3))
ENDS = Rule(method="linear", sources=("dial",), parts=("embeddings", "final_norm"))
FLAT = Rule(method="linear", sources=("dial",), lines=Lines(alpha=1, beta=0))
MISTAKES: list[tuple[Callable[[], Recipe], str]] = [
    (lambda: recipe(LAYERS), "is covered by no rule"),
    (lambda: recipe(LAYERS, LAYERS, ENDS), "is covered by layers 0-3, layers 0-3"),
    (
        lambda: recipe(LAYERS, ENDS, Rule(method="linear", sources=("dial",), layers=(9,))),
        "covers no tensor",
    ),
    (lambda: recipe(FLAT), "linear has none; expected a method of task vectors"),
    (lambda: whole("tise"), "did you mean 'ties'"),
    (lambda: whole("ties", densty=0.5), "did you mean 'density'"),
    (lambda: whole("ties", density=1.5), "1.5"),
    (lambda: recipe(Rule(method="linear", sources=("dial", "dial"))), "stands twice"),
    (lambda: recipe(Rule(method="slerp", sources=("dial",))), "slerp"),
    (
        lambda: recipe(
            Rule(method="linear", sources=("dial",), parameters={"weight": {"past": 1.0}})
        ),
        "has values for",
    ),
]


@pytest.mark.parametrize(
    ("make", "message"), MISTAKES, ids=[message[:30] for _, message in MISTAKES]
)
def test_mistakes_are_raised_by_the_plan(
    models: Models, make: Callable[[], Recipe], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_merge(make(), models)


def test_only_tensors_whose_job_changed_are_written_again(
    models: Models, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halves(weight: float) -> Recipe:
        low = dataclasses.replace(LAYERS, layers=(0, 1))
        high = dataclasses.replace(LAYERS, layers=(2, 3), parameters={"weight": weight})
        high = dataclasses.replace(high, method="task_arithmetic")
        return recipe(low, high, ENDS)

    workspace.load(halves(0.1))
    written = []
    monkeypatch.setattr(
        "evomerge.merging.workspace.merge_job",
        lambda job, *rest, **options: (
            written.append(job.slot.name),
            merge_job(job, *rest, **options),
        ),
    )
    workspace.load(halves(0.2))
    assert written == [slot for slot in models.layout.slots if re.search(r"layers\.[23]\.", slot)]
    for name, tensor in merged_tensors(halves(0.2), models):
        assert torch.equal(workspace.model.state_dict()[name], tensor), name


def test_after_a_broken_candidate_everything_is_written_again(
    models: Models, workspace: Workspace
) -> None:
    broken, sound = whole("task_arithmetic", weight=1e39), whole("task_arithmetic", weight=0.5)
    for asked in (broken, sound):
        if asked is broken:
            with pytest.raises(CandidateError):
                workspace.load(asked)
        else:
            workspace.load(asked)
    with pytest.raises(CandidateError):
        workspace.load(broken)
    with pytest.raises(CandidateError):  # its jobs are those that were written last
        workspace.load(broken)


def test_a_model_dispatched_by_accelerate_is_written_where_it_is(models: Models) -> None:
    dispatched = Workspace(
        models, dtype=torch.bfloat16, device=torch.device("cpu"), device_map={"": "cpu"}
    )
    asked = whole("ties", density=0.4)
    dispatched.load(asked)
    for name, tensor in merged_tensors(asked, models):
        assert torch.equal(dispatched.model.state_dict()[name], tensor), name


@pytest.mark.parametrize("placement", ["device", "host", "files"])
def test_placement_changes_no_bit(placement: Placement) -> None:
    fresh = open_models(TEMPLATE)
    fresh.hold(placement, dict.fromkeys(fresh.layout.slots, torch.device("cpu")))
    expected = dict(merged_tensors(whole("ties"), open_models(TEMPLATE)))
    for name, tensor in merged_tensors(whole("ties"), fresh):
        assert torch.equal(tensor, expected[name]), name


def test_statistics_are_kept_by_hash_and_damaged_files_are_made_again(tmp_path: Path) -> None:
    hashes = {name: name * 8 for name in (BASE, "dial", "past")}
    first = open_models(TEMPLATE)
    first.kept = KeptStatistics(tmp_path, hashes)
    expected = dict(merged_tensors(whole("ties"), first))
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 2 * len(first.layout.slots)
    files[0].write_bytes(files[0].read_bytes()[:50])

    def computed(hashes: dict[str, str]) -> int:
        models = open_models(TEMPLATE)
        models.kept = kept = KeptStatistics(tmp_path, hashes)
        count = 0

        def made(*arguments: object) -> object:
            nonlocal count
            count += 1
            return KeptStatistics._made(kept, *arguments)  # type: ignore[arg-type]

        kept._made = made  # type: ignore[method-assign, assignment]
        for name, tensor in merged_tensors(whole("ties"), models):
            assert torch.equal(tensor, expected[name]), name
        return count

    assert computed(hashes) == 1
    assert computed(hashes) == 0
    assert computed({**hashes, "past": "other"}) == len(first.layout.slots)

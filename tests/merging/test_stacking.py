"""Stacks of layers: what is live, written and freshly loaded is one model."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from evomerge.architectures import place, writes_to_residual
from evomerge.errors import UserError
from evomerge.exporting import merge
from evomerge.merging.models import Models, open_models
from evomerge.merging.workspace import Workspace
from evomerge.recipe import BASE, MERGED, Model, Piece, Recipe, Rule
from tests.families import FAMILIES, make_checkpoint

FAMILY = Path(__file__).parent.parent.parent / "configs" / "quickstart" / "models"
ENDS = Rule(method="passthrough", sources=(BASE,), parts=("embeddings", "final_norm", "head"))
TEMPLATE = Recipe(
    base=Model(path=str(FAMILY / "base")),
    sources={name: Model(path=str(FAMILY / name)) for name in ("dial", "past")},
    rules=(ENDS,),
    dtype="float32",
)
TOKENS = torch.tensor([[1, 5, 9, 3, 7, 2, 8, 4]])

LONGER, SWAPPED, ALONE = (0, 1, 0, 1, 1), (1, 0), (0,)
BY_NUMBER = {
    "deepseek_v3": (LONGER, SWAPPED),
    "ernie4_5_moe": (LONGER, SWAPPED),
    "minimax": (LONGER,),
}
"""Families in which the number or count of layers decides what a layer is: stacks refused."""
NORM_AFTER = ("gemma2", "gemma3_text", "olmo2", "glm4")
"""Families with a norm between the projections and the residual stream."""


def stacked(*pieces: tuple[str, str] | tuple[str, str, float], **changes: object) -> Recipe:
    found = [
        Piece(source=s, layers=parse(layers), scale=next(iter(r), 1.0)) for s, layers, *r in pieces
    ]
    return dataclasses.replace(TEMPLATE, stack=tuple(found), **changes)  # type: ignore[arg-type]


def parse(text: str) -> tuple[int, ...]:
    return tuple(int(layer) for layer in text.split())


def logits(model: PreTrainedModel, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits


@pytest.fixture(scope="module")
def models() -> Models:
    return open_models(TEMPLATE)


@pytest.fixture(scope="module")
def workspace(models: Models) -> Workspace:
    return Workspace(models, dtype=torch.float32, device=torch.device("cpu"))


STACKS = {
    "in place": stacked(("dial", "0 1"), ("past", "2 3")),
    "deeper": stacked(("dial", "0 1 2"), ("past", "1 2 3")),
    "shallow": stacked(("base", "0 3")),
    "repeats": stacked(("dial", "0 1 1 1", 0.5), ("base", "2 3")),
    "backwards": stacked(("past", "3 2 1 0")),
    "merged": stacked(
        (MERGED, "0 1 2 2"),
        ("dial", "3"),
        rules=(Rule(method="ties", sources=("dial", "past"), parameters={"density": 0.5}),),
    ),
}


@pytest.mark.parametrize("name", STACKS)
def test_live_model_export_and_fresh_load_agree(
    workspace: Workspace, name: str, tmp_path: Path
) -> None:
    recipe = STACKS[name]
    workspace.load(recipe)
    folder = merge(recipe, tmp_path / "out")
    fresh = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(fresh), logits(workspace.model))
    assert fresh.config.num_hidden_layers == len(recipe.layers_of_stack() or ())
    assert Recipe.read(folder / "recipe.yaml").stack == recipe.stack
    live = workspace.model.state_dict()
    assert list(fresh.state_dict()) == list(live)
    assert all(torch.equal(tensor, live[n]) for n, tensor in fresh.state_dict().items())
    ids = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    assert torch.equal(fresh.generate(TOKENS, **ids), workspace.model.generate(TOKENS, **ids))


def test_the_live_model_grows_and_shrinks_and_comes_back(workspace: Workspace) -> None:
    plain = dataclasses.replace(TEMPLATE, rules=(Rule(method="linear", sources=("dial", "past")),))
    workspace.load(plain)
    before = logits(workspace.model)
    seen = {}
    for name in ("deeper", "shallow", "repeats", "deeper", "merged", "repeats"):
        workspace.load(STACKS[name])
        assert torch.equal(seen.setdefault(name, logits(workspace.model)), logits(workspace.model))
    workspace.load(plain)
    assert torch.equal(logits(workspace.model), before)


def test_layers_that_stay_are_not_written_again(
    models: Models, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.load(stacked(("dial", "0 1 2 3")))
    read: list[str] = []
    operands = models.operands

    def counted(slot: str, sources: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
        read.append(slot)
        return operands(slot, sources)

    monkeypatch.setattr(models, "operands", counted)
    workspace.load(stacked(("dial", "0 1 2 3 3")))
    assert {place(name).layer for name in read} == {3}
    assert len(read) == sum(place(name).layer == 3 for name in models.layout.slots)


def test_a_scale_is_on_the_projections_that_write_to_the_residual_stream(
    models: Models, workspace: Workspace
) -> None:
    workspace.load(stacked(("dial", "0 1 2 3", 0.25)))
    live = workspace.model.state_dict()
    scaled = {n for n in models.layout.slots if not torch.equal(live[n], models.read("dial", n))}
    scaled -= {n for n in models.layout.slots if place(n).layer is None}
    ends = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    assert scaled == {f"model.layers.{n}.{end}" for n in range(4) for end in ends}
    for name in scaled:
        assert torch.equal(live[name], 0.25 * models.read("dial", name))


def test_ends_of_a_stack_come_from_the_rules(models: Models, workspace: Workspace) -> None:
    rule = Rule(method="linear", sources=("dial", "past"), parts=ENDS.parts)
    workspace.load(stacked(("base", "0 1"), rules=(rule,)))
    name = "model.norm.weight"
    mean = (models.read("dial", name).float() + models.read("past", name).float()) / 2
    torch.testing.assert_close(workspace.model.state_dict()[name], mean)


@pytest.mark.parametrize("family", FAMILIES)
def test_stacks_of_every_family(family: str, tmp_path: Path) -> None:
    """Layers repeated, swapped and left out: live and fresh models agree, or the plan says why."""
    torch.manual_seed(0)
    base, source = (make_checkpoint(family, tmp_path / n, seed) for seed, n in enumerate("ab"))
    recipe = Recipe(
        base=Model(path=str(base)),
        sources={"b": Model(path=str(source))},
        rules=(Rule(method="passthrough", sources=(BASE,)),),
        dtype="float32",
    )
    models = open_models(recipe)
    workspace = Workspace(models, dtype=torch.float32, device=torch.device("cpu"))
    for number, layers in enumerate((LONGER, SWAPPED, ALONE)):
        own = dataclasses.replace(recipe, stack=(Piece(source="b", layers=layers),))
        if layers in BY_NUMBER.get(family, ()):
            with pytest.raises(UserError, match="lets the number of a layer decide"):
                workspace.load(own)
            continue
        if layers == ALONE and family in ("lfm2", "qwen3_next"):
            continue  # transformers cannot run them without any attention layer
        workspace.load(own)
        folder = merge(own, tmp_path / f"out{number}")
        fresh = AutoModelForCausalLM.from_pretrained(folder).eval()
        assert torch.equal(logits(fresh), logits(workspace.model)), layers
    identity = dataclasses.replace(recipe, stack=(Piece(source=BASE, layers=(0, 1)),))
    order = models.stacks.layout((0, 1))[0].slots
    assert list(order) == list(models.layout.slots)
    workspace.load(recipe)
    plain = logits(workspace.model)
    workspace.load(identity)
    assert torch.equal(logits(workspace.model), plain)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in BY_NUMBER])
def test_a_layer_of_scale_0_adds_nothing(family: str, tmp_path: Path) -> None:
    base = make_checkpoint(family, tmp_path / "a")
    rules = (Rule(method="passthrough", sources=(BASE,)),)
    recipe = Recipe(base=Model(path=str(base)), sources={}, rules=rules, dtype="float32")
    models = open_models(recipe)
    workspace = Workspace(models, dtype=torch.float32, device=torch.device("cpu"))
    workspace.load(recipe)
    plain = logits(workspace.model)
    silent = (Piece(source=BASE, layers=(0, 1)), Piece(source=BASE, layers=(0, 1), scale=0.0))
    longer = dataclasses.replace(recipe, stack=silent)
    if family in NORM_AFTER:
        with pytest.raises(UserError, match=r"a norm .* stands between"):
            workspace.load(longer)
        return
    workspace.load(longer)
    torch.testing.assert_close(logits(workspace.model), plain, rtol=1e-5, atol=1e-5)
    assert any(writes_to_residual(name) for name in models.layout.slots)


@pytest.mark.parametrize(
    ("pieces", "rules", "message"),
    [
        ([("dial", "0 4")], (ENDS,), "layer 4: the base has layers 0 to 3"),
        ([("dial", "0")], (), "embed_tokens.*is covered by no rule"),
        ([(MERGED, "0 1")], (ENDS,), "layer 0.*is covered by no rule"),
        ([("nobody", "0")], (ENDS,), "'nobody' is not among the models"),
    ],
)
def test_mistakes_are_raised_by_the_plan(
    workspace: Workspace, pieces: list[tuple[str, str]], rules: tuple[Rule, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        workspace.load(stacked(*pieces, rules=rules))


def test_per_layer_lists_of_the_config_move_with_the_layers(tmp_path: Path) -> None:
    base = make_checkpoint("gemma3_text", tmp_path / "a")
    path = base / "config.json"
    content = json.loads(path.read_text())
    content["layer_types"] = ["sliding_attention", "full_attention"]
    path.write_text(json.dumps(content))
    rules = (Rule(method="passthrough", sources=(BASE,)),)
    recipe = Recipe(base=Model(path=str(base)), sources={}, rules=rules, dtype="float32")
    recipe = dataclasses.replace(recipe, stack=(Piece(source=BASE, layers=(1, 0, 1)),))
    folder = merge(recipe, tmp_path / "out")
    written = json.loads((folder / "config.json").read_text())
    assert written["layer_types"] == ["full_attention", "sliding_attention", "full_attention"]
    workspace = Workspace(open_models(recipe), dtype=torch.float32, device=torch.device("cpu"))
    workspace.load(recipe)
    tokens = torch.arange(1, 25)[None]  # longer than the window
    fresh = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(fresh, tokens), logits(workspace.model, tokens))

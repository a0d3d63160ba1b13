"""Other vocabularies from end to end: exports, adapters, searches, inspection, checks."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from evomerge import Recipe, merge
from evomerge.adapting import merge_as_adapter
from evomerge.cli import app
from evomerge.config import load_config
from evomerge.errors import UserError
from evomerge.merging.models import open_models
from evomerge.merging.plan import merged_tensors
from evomerge.merging.workspace import Workspace
from evomerge.recipe import BASE, MERGED, Model, Piece, Rule
from evomerge.report import read_run
from tests.vocabularies import EMBEDDINGS, FAMILY, TOKENS, variant, write_tokenizer

SHUFFLED = tuple(random.Random(1).sample(TOKENS, len(TOKENS)))
TEXT = "Paris <call>is<call> in France"


def recipe(vocabulary: str, *folders: Path, dtype: str = "float32") -> Recipe:
    names = tuple(folder.name for folder in folders)
    return Recipe(
        base=Model(path=str(FAMILY / "base")),
        sources={folder.name: Model(path=str(folder)) for folder in folders},
        rules=(Rule(method="task_arithmetic", sources=names, parameters={"weight": 0.4}),),
        dtype=dtype,  # type: ignore[arg-type]
        vocabulary=vocabulary,
    )


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with other numbers and an added token."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    return variant("dial", folder, tokens=SHUFFLED, added=["<call>"])


def test_a_stack_of_another_depth_has_the_union_of_tokens(tmp_path: Path, chat: Path) -> None:
    pieces = (Piece(source="chat", layers=(0, 1, 2)), Piece(source=MERGED, layers=(1, 2, 3)))
    asked = dataclasses.replace(recipe("union", chat, FAMILY / "past"), stack=pieces)
    models = open_models(asked)
    live = Workspace(models, dtype=torch.float32, device=torch.device("cpu"))
    live.load(dataclasses.replace(asked, stack=None))
    live.load(asked)
    folder = merge(asked, tmp_path / "out")
    fresh = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert fresh.config.num_hidden_layers == 6
    assert fresh.config.vocab_size == live.model.config.vocab_size == len(tokenizer)
    assert live.model.get_input_embeddings().num_embeddings == len(tokenizer)
    tokens = torch.tensor([tokenizer(TEXT).input_ids])
    with torch.no_grad():
        assert torch.equal(fresh(tokens).logits, live.model(tokens).logits)


@pytest.mark.parametrize("vocabulary", [BASE, "union", "chat"])
def test_an_export_reloads_with_the_live_model_s_logits(
    tmp_path: Path, chat: Path, vocabulary: str
) -> None:
    asked = recipe(vocabulary, chat, FAMILY / "past", dtype="bfloat16")
    folder = merge(asked, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16").eval()
    models = open_models(asked)
    live = Workspace(models, dtype=torch.bfloat16, device=torch.device("cpu"))
    live.load(asked)
    assert models.vocabularies is not None
    assert tokenizer.get_vocab() == models.vocabularies.tokenizer.get_vocab()
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    assert torch.equal(ids, models.vocabularies.tokenizer(TEXT, return_tensors="pt").input_ids)
    assert (ids == tokenizer.convert_tokens_to_ids("<call>")).sum() == 2 * (vocabulary != BASE)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, live.model(ids).logits)
    for settings in (model.config, model.generation_config, live.model.generation_config):
        for kind, token in (("bos", "<s>"), ("eos", "</s>"), ("pad", "<pad>")):
            number = tokenizer.convert_tokens_to_ids(token)
            assert getattr(settings, f"{kind}_token_id") == number, kind
    rows = model.get_input_embeddings().weight.shape[0]
    assert (
        model.config.vocab_size
        == live.model.config.vocab_size
        == rows
        == 100 + (vocabulary != BASE)
    )
    again = merge(Recipe.read(folder / "recipe.yaml"), tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_logits_of_a_text_do_not_depend_on_the_numbers(tmp_path: Path, chat: Path) -> None:
    asked = {name: recipe(name, chat, FAMILY / "past") for name in (BASE, "union", "chat")}
    text, logits = "Paris is in France", {}
    for name, each in asked.items():
        folder = merge(each, tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            found = model(tokenizer(text, return_tensors="pt").input_ids).logits
        logits[name] = found[0][:, tokenizer.convert_tokens_to_ids(list(TOKENS))]
    for name in ("union", "chat"):
        torch.testing.assert_close(logits[name], logits[BASE], atol=1e-5, rtol=1e-5)


def test_a_union_keeps_flags_and_template_and_adds_in_order(tmp_path: Path, chat: Path) -> None:
    past = variant("past", tmp_path / "past", added=["<b>", "<call>", "<a>"])
    folder = merge(recipe("union", past, chat), tmp_path / "out")
    content = json.loads((folder / "tokenizer.json").read_text())
    added = {t["content"]: (t["id"], t["special"]) for t in content["added_tokens"][4:]}
    assert added == {"<b>": (100, True), "<call>": (101, True), "<a>": (102, True)}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (
        tokenizer.decode(tokenizer(TEXT).input_ids, skip_special_tokens=True)
        == "Paris is in France"
    )


def make_adapter(folder: Path, tokenizer: bool = True, **settings: Any) -> Path:
    """An adapter on embeddings with two more rows; beside it the model that peft merges."""
    model = AutoModelForCausalLM.from_pretrained(FAMILY / "base", dtype="float32")
    model.resize_token_embeddings(102)
    given = {"r": 2, "target_modules": ["q_proj"], **settings}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**given))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder)
    adapted.merge_and_unload().save_pretrained(folder / "merged")
    if tokenizer:
        write_tokenizer(folder, TOKENS, ["<call>", "<end>"])
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_with_added_rows_is_a_source_with_a_tokenizer(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    adapter = make_adapter(tmp_path / "adapter", **settings)
    asked = recipe("union", adapter)
    asked = dataclasses.replace(asked, rules=(Rule(method="passthrough", sources=("adapter",)),))
    got = dict(merged_tensors(asked, open_models(asked)))
    expected = AutoModelForCausalLM.from_pretrained(adapter / "merged").state_dict()
    assert got[EMBEDDINGS].shape == (102, 96)
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_with_added_rows_that_nothing_explains_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no tokenizer"):
        open_models(recipe("union", make_adapter(tmp_path / "bare", tokenizer=False)))
    half = make_adapter(tmp_path / "half", modules_to_save=["embed_tokens"])
    with pytest.raises(UserError, match="a tied head is no tensor of its own"):
        open_models(recipe("union", half))


def test_a_result_with_more_tokens_as_an_adapter(tmp_path: Path, chat: Path) -> None:
    asked = recipe("union", chat)
    merge_as_adapter(asked, tmp_path / "adapter", 96)
    rule = Rule(method="passthrough", sources=("adapter",))
    back = dataclasses.replace(recipe("union", tmp_path / "adapter"), rules=(rule,))
    got = dict(merged_tensors(back, open_models(back)))
    for name, tensor in merged_tensors(asked, open_models(asked)):
        torch.testing.assert_close(got[name], tensor, atol=1e-5, rtol=1e-5)


def test_check_says_which_vocabulary_is_used(small: Callable[..., Path], chat: Path) -> None:
    path = small("vocabulary: union\n")
    path.write_text(path.read_text().replace(str(FAMILY / "dial"), str(chat)))
    done = CliRunner().invoke(app, ["check", str(path), "--no-probe"])
    assert done.exit_code == 0, done.output
    assert "tokens   101, vocabulary: union" in done.stdout
    assert "dial: adds 1 token ('<call>'), moves" in done.stdout


def test_a_search_scores_with_the_merged_model_s_tokenizer(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    path, plain = small("vocabulary: dial\n", trials=4), small(trials=4, name="plain")
    dial = variant("dial", tmp_path / "dial", tokens=SHUFFLED)
    path.write_text(path.read_text().replace(str(FAMILY / "dial"), str(dial)))
    for file in (path, plain):
        done = CliRunner().invoke(app, ["search", str(file)])
        assert done.exit_code == 0, done.output
    values = [
        {record.name: record.value for record in read_run(file.with_suffix("")).records}
        for file in (path, plain)
    ]
    assert values[0] == pytest.approx(values[1])
    assert len(set(values[0].values())) > 2
    text = path.read_text().replace("vocabulary: dial", "vocabulary: base")
    path.write_text(text)
    done = CliRunner().invoke(app, ["search", str(path)])
    assert "vocabulary: 'dial " in done.output
    assert "begun with another configuration" in done.output


def test_inspect_tells_how_vocabularies_differ_and_what_helps(tmp_path: Path, chat: Path) -> None:
    base = str(FAMILY / "base")
    done = CliRunner().invoke(app, ["inspect", base, str(chat), str(FAMILY / "past")])
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert "these can be merged" in text
    assert "chat: its vocabulary adds 1 token ('<call>'), moves" in text
    assert "`vocabulary: union` keeps them all" in text
    other = variant("past", tmp_path / "other", tokens=(*TOKENS, "ä"))
    done = CliRunner().invoke(app, ["inspect", base, str(other)])
    assert "no union: other has 1 token ('ä')" in " ".join(done.stdout.split())


@pytest.mark.parametrize("wrong", ["unoin", "3"])
def test_an_unknown_vocabulary_is_named(small: Callable[..., Path], wrong: str) -> None:
    with pytest.raises(UserError, match=r"vocabulary: .*Known: base, dial, past, union"):
        load_config(small(f"vocabulary: '{wrong}'\n"))
    asked = recipe("union", FAMILY / "past").to_yaml()
    with pytest.raises(UserError, match=r"vocabulary: .*Known: base, past, union"):
        Recipe.from_yaml(asked.replace("vocabulary: union", f"vocabulary: '{wrong}'"))


def test_the_base_s_vocabulary_leaves_no_trace_in_a_recipe() -> None:
    plain, union = recipe(BASE, FAMILY / "past"), recipe("union", FAMILY / "past")
    assert "vocabulary:" not in plain.to_yaml()
    assert Recipe.from_yaml(union.to_yaml()) == union
    assert plain.fingerprint() != union.fingerprint()

"""Merges of models with other vocabularies: rows are matched by token, padding counts nowhere."""

import dataclasses
import json
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import UserError
from evomerge.merging.layout import read_layout
from evomerge.merging.models import Models, open_models
from evomerge.merging.placement import Placement
from evomerge.merging.plan import merged_tensors
from evomerge.merging.workspace import Workspace
from evomerge.methods import METHODS
from evomerge.recipe import BASE, Model, Recipe, Rule
from tests.families import make_checkpoint
from tests.vocabularies import EMBEDDINGS, FAMILY, TOKENS, variant, write_tokenizer

SHUFFLED = tuple(random.Random(0).sample(TOKENS, len(TOKENS)))
METHODS_OF_TWO = [
    name
    for name, method in METHODS.items()
    if method.minimum_sources <= 2 <= (method.maximum_sources or 2)
]


def recipe(
    *folders: Path,
    base: Path = FAMILY / "base",
    method: str = "task_arithmetic",
    vocabulary: str = BASE,
    **parameters: float,
) -> Recipe:
    return Recipe(
        base=Model(path=str(base)),
        sources={folder.name: Model(path=str(folder)) for folder in folders},
        rules=(
            Rule(method=method, sources=tuple(f.name for f in folders), parameters={**parameters}),
        ),
        dtype="float32",
        vocabulary=vocabulary,
    )


def merged(asked: Recipe) -> dict[str, torch.Tensor]:
    return dict(merged_tensors(asked, open_models(asked)))


def assert_equal(got: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


Opened = tuple[Recipe, Models]


@pytest.fixture(scope="module")
def plain() -> Opened:
    asked = recipe(FAMILY / "dial", FAMILY / "past")
    return asked, open_models(asked)


@pytest.fixture(scope="module")
def permuted(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A source with its tokens under other numbers."""
    dial = variant("dial", tmp_path_factory.mktemp("permuted") / "dial", tokens=SHUFFLED)
    asked = recipe(dial, FAMILY / "past")
    return asked, open_models(asked)


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """28 further rows, huge in the sources and 7 in the base."""
    folder = tmp_path_factory.mktemp("padded")
    base = variant("base", folder / "base", padding=torch.full((28, 96), 7.0))
    names = ("dial", "past")
    huge = [variant(name, folder / name, padding=torch.full((28, 96), 1e4)) for name in names]
    asked = recipe(*huge, base=base)
    return asked, open_models(asked)


def by(opened: Opened, method: str) -> dict[str, torch.Tensor]:
    """The whole merge, by a method at its defaults."""
    asked, models = opened
    rule = Rule(method=method, sources=tuple(asked.sources))
    return dict(merged_tensors(dataclasses.replace(asked, rules=(rule,)), models))


@pytest.mark.parametrize("method", METHODS_OF_TWO)
def test_permuted_numbers_change_no_bit(permuted: Opened, plain: Opened, method: str) -> None:
    assert_equal(by(permuted, method), by(plain, method))


def test_a_source_s_vocabulary_permutes_the_result(tmp_path: Path) -> None:
    dial = variant("dial", tmp_path / "dial", tokens=SHUFFLED)
    got = merged(recipe(dial, FAMILY / "past", method="linear", vocabulary="dial"))
    plain = merged(recipe(FAMILY / "dial", FAMILY / "past", method="linear"))
    for row, token in enumerate(SHUFFLED):
        assert torch.equal(got[EMBEDDINGS][row], plain[EMBEDDINGS][TOKENS.index(token)]), token


@pytest.mark.parametrize("weight", [-0.7, 0.0, 0.3, 1.0])
def test_a_token_of_one_source_keeps_that_source_s_row(tmp_path: Path, weight: float) -> None:
    dial = variant("dial", tmp_path / "dial", added=["<call>"])
    got = merged(recipe(dial, FAMILY / "past", vocabulary="union", weight=weight))[EMBEDDINGS]
    plain = merged(recipe(FAMILY / "dial", FAMILY / "past", weight=weight))[EMBEDDINGS]
    own = open_models(recipe(dial)).own("dial", EMBEDDINGS)[100]
    assert got.shape[0] == 101
    assert torch.equal(got[:100], plain)
    assert torch.equal(got[100], own.float())


def test_a_token_of_two_sources_starts_from_their_mean(tmp_path: Path) -> None:
    dial = variant("dial", tmp_path / "dial", added=["<a>", "<b>"])
    past = variant("past", tmp_path / "past", added=["<b>"])
    asked = recipe(dial, past, FAMILY / "sort7", vocabulary="union")
    models = open_models(asked)
    assert models.vocabularies is not None
    assert models.vocabularies.result[100:] == ("<a>", "<b>")
    b = [models.own("dial", EMBEDDINGS)[101].float(), models.own("past", EMBEDDINGS)[100].float()]
    rows = {name: models.read(name, EMBEDDINGS)[101].float() for name in models.checkpoints}
    assert torch.equal(rows[BASE], (b[0] + b[1]) / 2)
    assert torch.equal(rows["sort7"], rows[BASE])
    assert torch.equal(rows["dial"], b[0])
    assert torch.equal(rows["past"], b[1])
    own = models.own("dial", EMBEDDINGS)[100].float()
    assert all(torch.equal(models.read(n, EMBEDDINGS)[100].float(), own) for n in rows)


def test_the_base_s_vocabulary_leaves_added_tokens_out(tmp_path: Path) -> None:
    dial = variant("dial", tmp_path / "dial", added=["<call>"])
    plain = recipe(FAMILY / "dial", FAMILY / "past", method="slerp")
    assert_equal(merged(recipe(dial, FAMILY / "past", method="slerp")), merged(plain))


def test_a_source_s_smaller_vocabulary_and_a_token_it_lacks(tmp_path: Path) -> None:
    fewer = tuple(token for token in SHUFFLED if token not in "xyz")
    dial = variant("dial", tmp_path / "dial", tokens=fewer)
    plain = merged(recipe(FAMILY / "dial", weight=0.5))[EMBEDDINGS]
    small = merged(recipe(dial, vocabulary="dial", weight=0.5))[EMBEDDINGS]
    assert len(small) == 97
    assert all(torch.equal(small[n], plain[TOKENS.index(t)]) for n, t in enumerate(fewer))
    asked = recipe(dial, weight=0.5)
    whole, base = merged(asked)[EMBEDDINGS], open_models(asked).own(BASE, EMBEDDINGS).float()
    for number, token in enumerate(TOKENS):
        expected = base if token in "xyz" else plain
        assert torch.equal(whole[number], expected[number]), token


@pytest.mark.parametrize("method", METHODS_OF_TWO)
def test_padding_counts_in_no_statistic(padded: Opened, plain: Opened, method: str) -> None:
    got = by(padded, method)
    assert torch.equal(got[EMBEDDINGS][100:], torch.full((28, 96), 7.0))
    assert_equal({**got, EMBEDDINGS: got[EMBEDDINGS][:100]}, by(plain, method))


def test_padding_of_a_head_of_its_own(tmp_path: Path) -> None:
    def of(padding: torch.Tensor | None, name: str) -> dict[str, torch.Tensor]:
        folders = (tmp_path / name / model for model in ("base", "dial", "past"))
        base, *sources = (variant(f.name, f, padding=padding, untied=True) for f in folders)
        return merged(recipe(*sources, base=base, method="ties"))

    without, rows = of(None, "without"), of(torch.full((28, 96), 1e3), "padded")
    assert torch.equal(rows["lm_head.weight"][:100], without["lm_head.weight"])
    assert (rows["lm_head.weight"][100:] == 2000).all()


def test_added_tokens_take_the_base_s_padding_then_more(tmp_path: Path) -> None:
    base = variant("base", tmp_path / "base", padding=torch.full((2, 96), 7.0))
    some = variant("dial", tmp_path / "dial", added=["<a>"])
    many = variant("past", tmp_path / "past", added=["<a>", "<b>", "<c>"])
    one = merged(recipe(some, base=base, vocabulary="union"))[EMBEDDINGS]
    assert len(one) == 102
    assert (one[101] == 7).all()
    assert not (one[100] == 7).any()
    asked = recipe(many, base=base, vocabulary="union")
    assert torch.equal(
        merged(asked)[EMBEDDINGS][100:], open_models(asked).own("past", EMBEDDINGS)[100:].float()
    )
    larger = variant("past", tmp_path / "larger", padding=torch.full((5, 96), 9.0))
    padding = merged(recipe(larger, base=base, vocabulary="larger"))[EMBEDDINGS][100:]
    assert torch.equal(padding, torch.tensor([7.0, 7.0, 0.0, 0.0, 0.0])[:, None].expand(5, 96))


@pytest.mark.parametrize("placement", ["device", "host", "files"])
@pytest.mark.parametrize("vocabulary", [BASE, "union", "dial"])
def test_live_model_and_writer_get_equal_bits(
    tmp_path: Path, placement: Placement, vocabulary: str
) -> None:
    base = variant("base", tmp_path / "base", padding=torch.full((3, 96), 7.0), untied=True)
    dial = variant("dial", tmp_path / "dial", tokens=SHUFFLED, added=["<a>"], untied=True)
    past = variant("past", tmp_path / "past", added=list("äöüßéè"), untied=True)
    asked = recipe(dial, past, base=base, method="slerp", vocabulary=vocabulary)
    models = open_models(asked)
    models.hold(placement, dict.fromkeys(models.layout.slots, torch.device("cpu")))
    workspace = Workspace(models, dtype=torch.float32, device=torch.device("cpu"))
    workspace.load(asked)
    rows = {BASE: 103, "union": 107, "dial": 101}[vocabulary]
    assert workspace.model.config.vocab_size == rows
    live = workspace.model.state_dict()
    assert len(live["lm_head.weight"]) == rows
    assert_equal(live, merged(asked))


def test_equal_vocabularies_are_read_as_they_are() -> None:
    asked = recipe(FAMILY / "dial", FAMILY / "past", vocabulary="union")
    models = open_models(asked)
    assert models.digest is None
    assert len(models.padding(EMBEDDINGS)) == 0
    models.hold("device", dict.fromkeys(models.layout.slots, torch.device("cpu")))
    held = models.own("dial", EMBEDDINGS)
    assert models.read("dial", EMBEDDINGS).data_ptr() == held.data_ptr()


def refusal(asked: Recipe) -> str:
    with pytest.raises(UserError) as raised:
        open_models(asked)
    return str(raised.value)


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    dial = variant("dial", tmp_path / "dial")
    write_tokenizer(dial, TOKENS, ["<ok>", "<call>"])
    text = refusal(recipe(dial))
    assert "dial" in text
    assert "token '<ok>' has number 100, but the embeddings have only 100 rows" in text


def test_another_number_of_rows_without_tokenizer_is_refused(tmp_path: Path) -> None:
    dial = variant("dial", tmp_path / "dial", added=["<call>"])
    for file in dial.glob("tokenizer*"):
        file.unlink()
    assert "101 rows, the base's 100, and dial has no tokenizer" in refusal(recipe(dial))
    base = variant("base", tmp_path / "base")
    for file in base.glob("tokenizer*"):
        file.unlink()
    assert "base has no tokenizer" in refusal(recipe(dial, base=base))
    assert "base" in refusal(recipe(FAMILY / "past", base=base, vocabulary="union"))
    assert "dial (" in refusal(recipe(dial, vocabulary="dial"))


def test_a_union_with_another_model_s_tokens_is_refused(tmp_path: Path) -> None:
    dial = variant("dial", tmp_path / "dial", tokens=(*TOKENS, "ä", "ö"))
    text = refusal(recipe(dial, vocabulary="union"))
    assert "dial has 2 tokens ('ä', 'ö')" in text
    assert "`vocabulary: dial`" in text
    assert len(merged(recipe(dial, vocabulary="dial"))[EMBEDDINGS]) == 102


def test_tied_and_untied_embeddings_are_refused(tmp_path: Path) -> None:
    dial = variant("dial", tmp_path / "dial", tokens=SHUFFLED, untied=True)
    assert "tying of the embeddings" in refusal(recipe(dial))


def test_an_unknown_vocabulary_is_refused() -> None:
    assert "did you mean 'union'" in refusal(recipe(FAMILY / "dial", vocabulary="unoin"))


def test_statistics_of_one_vocabulary_are_not_those_of_another(tmp_path: Path) -> None:
    def digest(models: Models) -> str | None:
        return models.digest

    dial = variant("dial", tmp_path / "dial", tokens=SHUFFLED, added=["<a>"])
    digests = {digest(open_models(recipe(dial, vocabulary=v))) for v in (BASE, "union", "dial")}
    assert len(digests) == 3
    assert None not in digests


@pytest.mark.parametrize("family", ["phi", "gptj", "gpt2", "gpt_neox", "opt", "mamba"])
@pytest.mark.parametrize("vocabulary", ["union", "source"])
def test_heads_biases_and_live_models_of_other_families(
    tmp_path: Path, family: str, vocabulary: str
) -> None:
    base, plain = (make_checkpoint(family, tmp_path / name, n) for n, name in enumerate("ab"))
    names = read_layout(base, torch.float32).vocabulary
    order = random.Random(0).sample(range(64), 64)
    source = tmp_path / "source"
    source.mkdir()
    tensors = load_file(plain / "model.safetensors")
    for name in names:
        tensors[name] = torch.cat([tensors[name][order], 1 + tensors[name][:2]])
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "vocab_size": 66}))
    write_tokenizer(base, TOKENS[:64])
    write_tokenizer(source, [TOKENS[n] for n in order], ["<a>", "<b>"])
    asked = recipe(source, base=base, vocabulary=vocabulary, weight=0.5)
    expected = merged(recipe(plain, base=base, weight=0.5))
    models = open_models(asked)
    workspace = Workspace(models, dtype=torch.float32, device=torch.device("cpu"))
    workspace.load(asked)
    state = workspace.model.state_dict()
    for name in names:
        live = state[models.layout.slots[name].parameter]
        rows = list(range(64)) if vocabulary == "union" else order
        assert torch.equal(live[:64], expected[name][rows]), name
        assert torch.equal(live[64:], tensors[name][64:]), name
    logits = workspace.model(torch.tensor([[5, 64, 6, 65]]), use_cache=False).logits
    assert logits.shape[-1] == 66

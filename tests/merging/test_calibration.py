"""Activations of real tiny models against plain hooks, and what a merge by them is good for."""

import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from evomerge import Recipe, UserError, merge
from evomerge.checkpoints.source import Checkpoint
from evomerge.merging.calibration import calibrate
from evomerge.merging.models import Models, open_models
from evomerge.merging.plan import merged_tensors, plan_merge
from evomerge.merging.workspace import Workspace
from evomerge.recipe import Calibration, Model, Piece, Rule
from tests.checkpoints.test_adapter import make_adapter
from tests.families import VOCABULARY, make_checkpoint
from tests.vocabularies import TOKENS, variant

QUICKSTART = Path(__file__).parent.parent.parent / "configs" / "quickstart"
CPU = torch.device("cpu")
SOURCES = ("dial", "past")
REGMEAN = Rule(method="regmean", sources=SOURCES)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family's own documents, as a calibration text."""
    lines = []
    for path in sorted((QUICKSTART / "tasks").glob("*.jsonl")):
        for document in map(json.loads, path.read_text().splitlines()[:60]):
            answer = document["answer"]
            answer = document["choices"][answer] if "choices" in document else answer
            lines.append(f"{document['question']} {answer}")
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def recipe(text: Path, *rules: Rule, dtype: str = "bfloat16", tokens: int = 2048) -> Recipe:
    return Recipe(
        base=Model(path=str(QUICKSTART / "models" / "base")),
        sources={name: Model(path=str(QUICKSTART / "models" / name)) for name in SOURCES},
        rules=rules or (REGMEAN,),
        dtype=dtype,  # type: ignore[arg-type]
        calibration=Calibration(file=str(text), tokens=tokens),
    )


@pytest.fixture(scope="module")
def calibrated(text: Path) -> Models:
    models = open_models(recipe(text))
    calibrate(recipe(text), models, device=CPU)
    return models


def words(folder: Path) -> None:
    """Gives a folder a tokenizer of one number per word."""
    vocabulary = {f"w{n}": n for n in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)


def plain_grams(folder: Path, sequences: list[list[int]]) -> dict[str, torch.Tensor]:
    """Module -> XᵀX in float64, each layer on its own."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    grams: dict[str, torch.Tensor] = {}

    def watch(name: str) -> None:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].detach().flatten(0, -2).double()
            grams[name] = grams.get(name, 0) + rows.T @ rows

        modules[name].register_forward_pre_hook(hook)

    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            watch(name)
    with torch.no_grad():
        for ids in sequences:
            model(input_ids=torch.tensor([ids]), use_cache=False)
    return grams


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "phi3", "falcon", "gptj", "opt"])
def test_gram_matrices_are_those_of_plain_hooks(family: str, tmp_path: Path) -> None:
    folders = [make_checkpoint(family, tmp_path / name, n) for n, name in enumerate(("base", "a"))]
    words(folders[0])
    ids = [(7 * n * n + 3 * n) % VOCABULARY for n in range(70)]
    (tmp_path / "text").write_text(" ".join(f"w{n}" for n in ids))
    asked = Recipe(
        base=Model(path=str(folders[0])),
        sources={"a": Model(path=str(folders[1]))},
        rules=(Rule(method="regmean", sources=("a",)),),
        dtype="float32",
        calibration=Calibration(file=str(tmp_path / "text"), length=32),
    )
    opened = open_models(asked)
    # So small that every layer takes a pass of its own.
    calibrate(asked, opened, device=CPU, pass_bytes=4)
    expected = plain_grams(folders[1], [ids[:32], ids[32:64], ids[64:]])
    assert opened.activations is not None
    found = {}
    for slot in opened.layout.slots:
        if (inputs := opened.activations.inputs("a", slot)) is not None:
            found[slot.removesuffix(".weight")] = inputs
    tied = {alias.removesuffix(".weight") for alias in opened.layout.tied}
    assert set(found) == set(expected) - tied
    for name, inputs in found.items():
        assert inputs.dim == (0 if family == "gpt2" and name != "lm_head" else 1)
        torch.testing.assert_close(
            inputs.gram.double(), expected[name], atol=1e-3, rtol=1e-3, msg=name
        )


def test_experts_without_linear_layers_are_averaged_and_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("base", "a", "b")
    folders = [make_checkpoint("mixtral", tmp_path / name, n) for n, name in enumerate(names)]
    words(folders[0])
    (tmp_path / "text").write_text(" ".join(f"w{n % VOCABULARY}" for n in range(200)))
    asked = Recipe(
        base=Model(path=str(folders[0])),
        sources={name: Model(path=str(tmp_path / name)) for name in "ab"},
        rules=(Rule(method="regmean", sources=("a", "b")),),
        dtype="float32",
        calibration=Calibration(file=str(tmp_path / "text"), length=32),
    )
    opened = open_models(asked)
    calibrate(asked, opened, device=CPU)
    assert "are no linear layers' weights" in caplog.text
    merged = dict(merged_tensors(asked, opened))
    averaged = {
        slot: torch.allclose(tensor, (opened.read("a", slot) + opened.read("b", slot)) / 2)
        for slot, tensor in merged.items()
    }
    assert all(averaged[slot] for slot in merged if "experts" in slot)
    assert not any(averaged[slot] for slot in merged if "proj" in slot)


def test_live_model_and_writer_get_equal_bits(text: Path, calibrated: Models) -> None:
    asked = recipe(text)
    workspace = Workspace(calibrated, dtype=torch.bfloat16, device=CPU)
    workspace.load(asked)
    live = workspace.model.state_dict()
    for name, tensor in merged_tensors(asked, calibrated):
        assert torch.equal(live[name], tensor), name


def distance(
    candidate: torch.Tensor, weights: list[torch.Tensor], grams: list[torch.Tensor]
) -> float:
    """Σ ‖X_i Wᵀ − X_i W_iᵀ‖²."""
    gaps = [candidate - weight for weight in weights]
    return sum(float((g @ gram * g).sum()) for g, gram in zip(gaps, grams, strict=True))


def test_it_is_nearer_to_the_sources_outputs_than_the_average(
    text: Path, calibrated: Models
) -> None:
    assert calibrated.activations is not None
    count = 0
    for slot, tensor in merged_tensors(recipe(text), calibrated):
        inputs = [calibrated.activations.inputs(source, slot) for source in SOURCES]
        weights = [calibrated.read(source, slot).double() for source in SOURCES]
        average = sum(weights) / 2
        if inputs[0] is None:
            torch.testing.assert_close(tensor, average.bfloat16())
            continue

        grams = [each.gram.double() for each in inputs if each is not None]
        nearer, plain = (distance(w, weights, grams) for w in (tensor.double(), average))
        assert nearer < 0.99 * plain, slot
        count += 1
    assert count == 4 * 7


def test_what_the_folder_keeps_is_not_made_again(text: Path, tmp_path: Path) -> None:
    asked = recipe(text)
    first = open_models(asked)
    calibrate(asked, first, device=CPU, folder=tmp_path)
    once = dict(merged_tensors(asked, first))
    second = open_models(asked)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    calibrate(asked, second, device=CPU, folder=tmp_path)
    for name, tensor in merged_tensors(asked, second):
        assert torch.equal(tensor, once[name])
    longer = recipe(text, tokens=300)
    calibrate(longer, open_models(longer), device=CPU, folder=tmp_path)
    now = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert {path: now[path] for path in written} == written
    assert len(now) == 2 * len(written) == 2 * 2 * 16  # four inputs of four layers, two sources


@pytest.mark.filterwarnings("ignore")  # peft's own
def test_an_adapter_reads_the_text_as_the_model_that_it_makes(text: Path, tmp_path: Path) -> None:
    base = QUICKSTART / "models" / "base"
    adapter = make_adapter(base, tmp_path / "adapter")
    alone = Rule(method="passthrough", sources=("adapter",))
    sources = {"adapter": Model(path=str(adapter))}
    asked = dataclasses.replace(recipe(text, alone, dtype="float32"), sources=sources)
    sources["dense"] = Model(path=str(merge(asked, tmp_path / "dense", device="cpu")))
    both = dataclasses.replace(asked, sources=sources)
    opened = open_models(both)
    calibrate(both, opened, ("adapter", "dense"), device=CPU)
    assert opened.activations is not None
    for slot in opened.layout.slots:
        one, other = (opened.activations.inputs(name, slot) for name in ("adapter", "dense"))
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert torch.equal(one.gram, other.gram), slot


@pytest.mark.parametrize("vocabulary", ["base", "union", "shuffled"])
def test_a_source_of_other_token_numbers_reads_the_same_text(
    text: Path, tmp_path: Path, vocabulary: str, calibrated: Models
) -> None:
    tokens = random.Random(1).sample(TOKENS, len(TOKENS))
    shuffled = variant("dial", tmp_path / "shuffled", tokens=tokens, added=["<call>"])
    asked = dataclasses.replace(
        recipe(text, Rule(method="regmean", sources=("shuffled",))),
        sources={"shuffled": Model(path=str(shuffled))},
        vocabulary=vocabulary,
    )
    opened = open_models(asked)
    calibrate(asked, opened, device=CPU)
    assert opened.activations is not None
    assert calibrated.activations is not None
    for slot in opened.layout.slots:
        one = calibrated.activations.inputs("dial", slot)
        other = opened.activations.inputs("shuffled", slot)
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one.gram, other.gram)


def test_a_stack_takes_layers_that_are_merged_so(text: Path, calibrated: Models) -> None:
    layers = (0, 1, 1, 2, 3)
    stacked = dataclasses.replace(recipe(text), stack=(Piece(source="merged", layers=layers),))
    calibrate(stacked, calibrated, device=CPU)
    plain = dict(merged_tensors(recipe(text), calibrated))
    for name, tensor in merged_tensors(stacked, calibrated):
        number = name.split(".")[2] if ".layers." in name else ""
        origin = name.replace(f".{number}.", f".{layers[int(number)]}.") if number else name
        assert torch.equal(tensor, plain[origin]), name


def test_a_model_that_accelerate_spreads_reads_the_text_alike(text: Path) -> None:
    asked = recipe(text, tokens=300)
    grams = []
    for device_map in (None, "cpu"):
        opened = open_models(asked)
        calibrate(asked, opened, device=CPU, device_map=device_map)
        assert opened.activations is not None
        grams.append(opened.activations.inputs("dial", "model.layers.2.mlp.down_proj.weight"))
    assert grams[0] is not None
    assert grams[1] is not None
    assert torch.equal(grams[0].gram, grams[1].gram)


def test_mistakes_are_told_with_what_to_do(text: Path, tmp_path: Path) -> None:
    asked = recipe(text)
    bare = dataclasses.replace(asked, calibration=None)
    models = open_models(asked)
    with pytest.raises(UserError, match=r"calibration: \{file: text.txt\}"):
        plan_merge(bare, models)
    for content, words in ((None, "cannot be read"), ("", "no tokens")):
        path = tmp_path / "other.txt"
        if content is not None:
            path.write_text(content)
        broken = recipe(path)
        with pytest.raises(UserError, match=words):
            calibrate(broken, models, device=CPU)


def test_a_merge_pins_the_text_and_refuses_a_changed_one(text: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    shutil.copy(text, path)
    recipe(Path("text.txt")).write(tmp_path / "recipe.yaml")
    assert Recipe.read(tmp_path / "recipe.yaml").calibration == Calibration(
        file=str(path), tokens=2048
    )
    folder = merge(tmp_path / "recipe.yaml", tmp_path / "out", device="cpu")
    pinned = Recipe.read(folder / "recipe.yaml")
    assert pinned.calibration is not None
    assert pinned.calibration.sha256 is not None
    card = (folder / "README.md").read_text()
    assert f"{path} (sha256 {pinned.calibration.sha256[:16]})" in card
    again = merge(pinned, tmp_path / "again", device="cpu")
    for name in Checkpoint(folder).tensors:
        assert torch.equal(Checkpoint(folder).read(name), Checkpoint(again).read(name))
    path.write_text("something else")
    with pytest.raises(UserError, match="the text has changed"):
        merge(pinned, tmp_path / "third", device="cpu")


def test_the_text_names_the_weights_and_its_place_does_not(text: Path) -> None:
    asked = recipe(text)
    assert asked.calibration is not None

    def with_text(**changes: object) -> Recipe:
        assert asked.calibration is not None
        changed = dataclasses.replace(asked.calibration, **changes)  # type: ignore[arg-type]
        return dataclasses.replace(asked, calibration=changed)

    hashed = with_text(sha256="ab")
    moved = with_text(sha256="ab", file="elsewhere.txt")
    assert hashed.fingerprint() == moved.fingerprint()
    assert hashed.fingerprint() != with_text(sha256="cd").fingerprint()
    assert hashed.fingerprint() != with_text(sha256="ab", tokens=5).fingerprint()
    assert Recipe.from_yaml(hashed.to_yaml()) == hashed
    assert "calibration" not in dataclasses.replace(asked, calibration=None).to_yaml()

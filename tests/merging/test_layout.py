"""Writing through the views is the same as loading, for every family."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from evomerge.errors import UserError
from evomerge.merging.layout import Layout, _trace, live_views, read_layout
from tests.families import FAMILIES, KEEPS_FLOAT32, VOCABULARY, make_checkpoint, make_model

Checkpoint = Callable[..., Path]
CASES = [(family, torch.float32) for family in FAMILIES]
CASES += [(family, torch.bfloat16) for family in KEEPS_FLOAT32]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For matrices this small, handing work to a second thread costs ten times the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Folder of a family's model by name, seed and dtype; each is written once."""
    made: dict[tuple[str, int, torch.dtype], Path] = {}

    def make(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
        key = (name, seed, dtype)
        if key not in made:
            made[key] = make_checkpoint(name, tmp_path_factory.mktemp(name), seed, dtype)
        return made[key]

    return make


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)


def names_in(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


def write_through_views(model: PreTrainedModel, layout: Layout, folder: Path) -> None:
    views, tensors = live_views(model, layout), load_file(folder / "model.safetensors")
    for name, slot in layout.canonical(tensors).items():
        views[slot].copy_(tensors[name])


def export_by_hand(model: PreTrainedModel, layout: Layout, folder: Path) -> None:
    views = live_views(model, layout)
    tensors = {name: view.contiguous().clone() for name, view in views.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)


def assert_same_bits(one: torch.Tensor, other: torch.Tensor, name: str) -> None:
    assert one.dtype == other.dtype, name
    assert torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)), (
        name
    )


def assert_equal_models(one: PreTrainedModel, other: PreTrainedModel) -> None:
    states = [dict(m.named_parameters()) | dict(m.named_buffers()) for m in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert_same_bits(tensor.detach().reshape(-1), states[1][name].detach().reshape(-1), name)
    tokens = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert_same_bits(one(tokens).logits, other(tokens).logits, "logits")


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_writing_is_loading(
    family: str, dtype: torch.dtype, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    first, second = checkpoint(family, 0, dtype), checkpoint(family, 1, dtype)
    layout = read_layout(first, dtype)
    names = names_in(first)
    assert layout.canonical(names) == {name: name for name in names}
    assert set(layout.slots) == set(names)
    model, expected = load(first, dtype), load(second, dtype)
    before = [tensor.detach().clone() for tensor in model.parameters()]
    write_through_views(model, layout, second)
    assert not any(map(torch.equal, before, model.parameters()))
    assert_equal_models(model, expected)
    export_by_hand(model, layout, tmp_path)
    assert_equal_models(load(tmp_path, dtype), expected)


@pytest.mark.parametrize("family", ["mixtral", "gpt2", "gpt_neox", "deepseek_v3"])
def test_save_pretrained_writes_what_the_views_hold(
    family: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    layout = read_layout(checkpoint(family), torch.float32)
    model = load(checkpoint(family), torch.float32)
    write_through_views(model, layout, checkpoint(family, 1))
    model.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    expected = load_file(checkpoint(family, 1) / "model.safetensors")
    assert written.keys() == expected.keys()
    for name, tensor in written.items():
        assert_same_bits(tensor, expected[name], name)


@pytest.mark.parametrize("family", KEEPS_FLOAT32)
def test_slots_know_what_stays_in_float32(family: str, checkpoint: Checkpoint) -> None:
    layout = read_layout(checkpoint(family), torch.bfloat16)
    kept = [name for name, slot in layout.slots.items() if slot.dtype == torch.float32]
    assert kept
    assert all("gate" in name or "moe_statics" in name for name in kept)
    assert layout.slots["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_experts_are_slices(checkpoint: Checkpoint) -> None:
    layout = read_layout(checkpoint("mixtral"), torch.float32)
    up = layout.slots["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    assert up.parameter == "model.layers.1.mlp.experts.gate_up_proj"
    # [4 experts, gate then up of 48 rows each, 32 columns]
    assert (up.shape, up.strides, up.offset) == ((48, 32), (32, 1), (2 * 96 + 48) * 32)


def test_a_tied_head_is_an_alias(checkpoint: Checkpoint) -> None:
    layout = read_layout(checkpoint("llama_tied"), torch.float32)
    head, embeddings = "lm_head.weight", "model.embed_tokens.weight"
    assert layout.aliases == {head: embeddings}
    assert head not in layout.slots
    others = [name for name in layout.slots if name != embeddings]
    assert layout.canonical([*others, head])[head] == embeddings
    both = [*layout.slots, head]
    assert head not in layout.canonical(both)
    assert layout.second_copies(both) == {head: embeddings}
    assert layout.second_copies(layout.slots) == {}
    assert read_layout(checkpoint("llama"), torch.float32).aliases == {}


def test_a_base_with_only_the_head_of_a_tied_pair(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = load_file(checkpoint("llama_tied") / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    FAMILIES["llama_tied"]().save_pretrained(tmp_path)
    model, layout = load(tmp_path, torch.float32), read_layout(tmp_path, torch.float32)
    assert layout.canonical(tensors)["lm_head.weight"] == "model.embed_tokens.weight"
    write_through_views(model, layout, checkpoint("llama_tied", 1))
    assert_equal_models(model, load(checkpoint("llama_tied", 1), torch.float32))


def test_two_different_tensors_for_a_tied_pair_are_refused(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    tensors = load_file(checkpoint("llama_tied") / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    FAMILIES["llama_tied"]().save_pretrained(tmp_path)
    layout = read_layout(tmp_path, torch.float32)
    with pytest.raises(UserError, match=r"ties 'lm_head.weight'.*tie_word_embeddings: false"):
        live_views(load(tmp_path, torch.float32), layout)


@pytest.mark.parametrize(
    ("family", "prefix"), [("gpt2", "transformer."), ("bloom", "transformer.")]
)
def test_checkpoints_of_the_bare_base_model(
    family: str, prefix: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    make_model(family, seed=1).base_model.save_pretrained(tmp_path)
    names = names_in(tmp_path)
    assert not any(name.startswith(prefix) for name in names)
    layout = read_layout(checkpoint(family), torch.float32)
    assert layout.canonical(names) == {name: prefix + name for name in names}
    model = load(checkpoint(family), torch.float32)
    write_through_views(model, layout, tmp_path)
    assert_equal_models(model, load(checkpoint(family, 1), torch.float32))
    # As the base itself: its slots are the same, and so is what is read into them.
    assert read_layout(tmp_path, torch.float32).slots == layout.slots


def test_what_transformers_ignores_is_left_out(checkpoint: Checkpoint) -> None:
    gpt2 = read_layout(checkpoint("gpt2"), torch.float32)
    assert gpt2.canonical([*gpt2.slots, "h.0.attn.bias"]) == {name: name for name in gpt2.slots}
    llama = read_layout(checkpoint("llama"), torch.float32)
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert old not in llama.canonical([*llama.slots, old])


def test_names_that_do_not_fit_are_refused(checkpoint: Checkpoint) -> None:
    layout = read_layout(checkpoint("gpt2"), torch.float32)
    with pytest.raises(UserError, match=r"no place for: 'score\.weight'"):
        layout.canonical([*layout.slots, "score.weight"])
    with pytest.raises(UserError, match=r"lacks tensors.*'transformer\.wpe\.weight'"):
        layout.canonical(name for name in layout.slots if "wpe" not in name)
    with pytest.raises(UserError, match=r"twice, as 'transformer\.ln_f\.bias' and as 'ln_f\.bias'"):
        layout.canonical([*layout.slots, "ln_f.bias"])


def test_folders_that_cannot_be_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: is missing"):
        read_layout(tmp_path, torch.float32)
    tensors = load_file(checkpoint("llama") / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = FAMILIES["llama"]()
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"incomplete: 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        read_layout(tmp_path, torch.float32)
    config.intermediate_size = 47
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"cannot load this.*It says: .*mismatch"):
        read_layout(tmp_path, torch.float32)


def test_weights_that_are_joined_in_memory_are_refused(tmp_path: Path) -> None:
    # HRM: two parameters in memory are one tensor on disk.
    config = CONFIG_MAPPING["hrm_text"](
        vocab_size=64, hidden_size=32, intermediate_size=48, num_attention_heads=4
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"gate_up_proj.* is not one evenly strided part"):
        read_layout(tmp_path, torch.float32)


def test_offloaded_and_other_models_are_refused(checkpoint: Checkpoint) -> None:
    folder = checkpoint("llama")
    layout = read_layout(folder, torch.float32)
    model = load(folder, torch.float32)
    model.model.layers[1].to("meta")
    with pytest.raises(UserError, match=r"'model\.layers\.1\..*is offloaded to the disk"):
        live_views(model, layout)
    with pytest.raises(UserError, match=r"is torch\.bfloat16.*expected contiguous torch\.float32"):
        live_views(load(folder, torch.bfloat16), layout)


def test_reading_a_layout_takes_no_memory_for_weights(tmp_path: Path) -> None:
    # 47 billion parameters: indices of their elements would be 373 GB.
    config = MixtralConfig()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) > 46e9
    slots = {slot.name: slot for slot in _trace(model, model.state_dict())}
    last = slots["model.layers.31.block_sparse_moe.experts.7.w2.weight"]
    assert (last.shape, last.offset) == ((4096, 14336), 7 * 4096 * 14336)


def test_a_buffer_that_the_base_lacks_has_no_slot(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = load_file(checkpoint("deepseek_v3") / "model.safetensors")
    buffer = "model.layers.1.mlp.gate.e_score_correction_bias"
    del tensors[buffer]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    FAMILIES["deepseek_v3"]().save_pretrained(tmp_path)
    layout = read_layout(tmp_path, torch.float32)
    assert set(layout.slots) == set(tensors)
    model = load(tmp_path, torch.float32)
    assert buffer in dict(model.named_buffers())
    assert set(live_views(model, layout)) == set(tensors)

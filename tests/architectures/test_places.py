"""Every tensor of every family has one place."""

from pathlib import Path

import pytest
import torch
from transformers.core_model_loading import revert_weight_conversion

from evomerge.architectures import END_PARTS, LAYER_PARTS, PARTS, Place, place
from evomerge.errors import UserError
from tests.families import FAMILIES, LAYERS, make_model

NAMES = {
    # Norms named after what they stand beside.
    "model.layers.3.post_attention_layernorm.weight": Place(3, "norm"),
    "model.layers.3.post_mlp_layernorm.weight": Place(3, "norm"),
    "model.layers.3.self_attn.q_norm.weight": Place(3, "norm"),
    "model.layers.3.self_attn.k_norm.weight": Place(3, "norm"),
    "model.layers.3.self_attn.kv_a_layernorm.weight": Place(3, "norm"),
    "model.decoder.layers.11.self_attn_layer_norm.bias": Place(11, "norm"),
    "model.decoder.layers.11.final_layer_norm.bias": Place(11, "norm"),
    "transformer.h.31.ln_attn.weight": Place(31, "norm"),
    "transformer.blocks.0.norm_attn_norm.norm_1.weight": Place(0, "norm"),
    "backbone.layers.7.norm.weight": Place(7, "norm"),
    # Attention and other token mixers.
    "transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight": Place(0, "attention"),
    "transformer.h.31.self_attention.query_key_value.weight": Place(31, "attention"),
    "model.layers.3.self_attn.gate_proj.weight": Place(3, "attention"),
    "model.layers.3.self_attn.sinks": Place(3, "attention"),
    "model.layers.3.linear_attn.conv1d.weight": Place(3, "attention"),
    "model.layers.3.conv.in_proj.weight": Place(3, "attention"),
    "model.layers.3.mamba.A_log": Place(3, "attention"),
    "backbone.layers.7.mixer.A_log": Place(7, "attention"),
    "backbone.layers.7.mixer.q_proj.weight": Place(7, "attention"),
    "model.layers.3.temporal_block.rg_lru.recurrent_param": Place(3, "attention"),
    # Mixtures of experts: the expert's number is not the layer's.
    "model.layers.3.mlp.experts.17.down_proj.weight": Place(3, "mlp"),
    "model.layers.3.block_sparse_moe.experts.17.w1.weight": Place(3, "mlp"),
    "model.layers.3.block_sparse_moe.gate.weight": Place(3, "mlp"),
    "model.layers.3.mlp.gate.e_score_correction_bias": Place(3, "mlp"),
    "model.layers.3.mlp.shared_expert_gate.weight": Place(3, "mlp"),
    "model.layers.3.feed_forward.shared_expert.up_proj.weight": Place(3, "mlp"),
    "backbone.layers.7.mixer.experts.17.up_proj.weight": Place(7, "mlp"),
    "backbone.layers.7.mixer.up_proj.weight": Place(7, "mlp"),
    "transformer.blocks.0.ffn.experts.mlp.w1": Place(0, "mlp"),
    "model.layers.3.self_attn.1.o_proj.weight": Place(3, "attention"),
    "model.layers.3.mlps.1.up_proj.weight": Place(3, "mlp"),
    "model.decoder.layers.11.fc1.weight": Place(11, "mlp"),
    # Outside the layers.
    "model.embed_tokens.weight": Place(None, "embeddings"),
    "transformer.wpe.weight": Place(None, "embeddings"),
    "transformer.word_embeddings_layernorm.weight": Place(None, "embeddings"),
    "model.decoder.embed_positions.weight": Place(None, "embeddings"),
    "model.decoder.project_in.weight": Place(None, "embeddings"),
    "vision_tower.encoder.layers.3.self_attn.q_proj.weight": Place(None, "embeddings"),
    "model.decoder.project_out.weight": Place(None, "head"),
    "embed_out.weight": Place(None, "head"),
    "lm_head.bias": Place(None, "head"),
    "model.norm.weight": Place(None, "final_norm"),
    "transformer.ln_f.bias": Place(None, "final_norm"),
    "backbone.norm_f.weight": Place(None, "final_norm"),
    "model.embedding_norm.weight": Place(None, "final_norm"),
    "model.decoder.final_layer_norm.weight": Place(None, "final_norm"),
}


def names_on_disk(family: str) -> list[str]:
    with torch.device("meta"):
        model = make_model(family, seed=0)
    return list(revert_weight_conversion(model, model.state_dict()))


@pytest.mark.parametrize("name", NAMES)
def test_known_names(name: str) -> None:
    assert place(name) == NAMES[name]


@pytest.mark.parametrize("name", ["transformer.h.10.attn.c_attn.weight", "transformer.wte.weight"])
def test_the_prefix_of_the_base_model_changes_nothing(name: str) -> None:
    assert place(name) == place(name.removeprefix("transformer."))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_family_has_a_place(family: str) -> None:
    places = {name: place(name) for name in names_on_disk(family)}
    assert {p.layer for p in places.values()} == {None, *range(LAYERS)}
    for where in places.values():
        assert where.part in (END_PARTS if where.layer is None else LAYER_PARTS)
    for layer in range(LAYERS):
        parts = {p.part for p in places.values() if p.layer == layer}
        assert parts == (set(LAYER_PARTS) - {"mlp"} if family == "mamba" else set(LAYER_PARTS))
    # A tied head has no tensor of its own.
    ends = {p.part for p in places.values() if p.layer is None}
    assert ends | {"head"} == set(END_PARTS)


def test_an_unknown_name_says_where_to_add_a_rule() -> None:
    with pytest.raises(UserError, match=r"'model.layers.0.riddle.weight'.*LAYER_RULES.*rules\.py"):
        place("model.layers.0.riddle.weight")
    with pytest.raises(UserError, match=r"'riddle.weight'.*END_RULES.*rules\.py"):
        place("riddle.weight")


def test_the_rules_need_no_torch() -> None:
    folder = Path(__file__).parents[2] / "evomerge" / "architectures"
    sources = [path.read_text() for path in folder.glob("*.py")]
    assert len(sources) == 3
    assert not any("import torch" in text or "transformers import" in text for text in sources)


def test_parts_are_layer_parts_and_end_parts() -> None:
    assert list(PARTS) == [*LAYER_PARTS, *END_PARTS]
    assert list(LAYER_PARTS) == ["attention", "mlp", "norm"]
    assert list(END_PARTS) == ["embeddings", "final_norm", "head"]

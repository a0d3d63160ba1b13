"""Tiny random models of many families, as ordinary checkpoint folders.

Every way in which a decoder's files may differ from its module is here: tied and untied heads,
fused and separate projections, experts, transposed weights, buffers, modules kept in float32.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 64
LAYERS = 2

_LLAMA: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT2: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS: Mapping[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}
_DEEPSEEK: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}


def _family(model_type: str, *shared: Mapping[str, Any], **own: Any) -> Callable[[], Any]:
    settings: dict[str, Any] = {}
    for some in (*shared, own):
        settings.update(some)
    return lambda: CONFIG_MAPPING[model_type](**settings)


FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": _family("llama", _LLAMA),
    "llama_tied": _family("llama", _LLAMA, tie_word_embeddings=True),
    "mistral": _family("mistral", _LLAMA),
    "qwen2": _family("qwen2", _LLAMA),
    "qwen3": _family("qwen3", _LLAMA, head_dim=8),
    "gemma2": _family("gemma2", _LLAMA, head_dim=8),
    "gemma3_text": _family("gemma3_text", _LLAMA, head_dim=8, sliding_window=8),
    "phi": _family("phi", _LLAMA),
    "phi3": _family("phi3", _LLAMA),
    "gpt2": _family("gpt2", _GPT2),
    "gpt_neox": _family("gpt_neox", _LLAMA),
    "gptj": _family("gptj", _GPT2, rotary_dim=4),
    "opt": _family("opt", _LLAMA, ffn_dim=48, word_embed_proj_dim=16),
    "bloom": _family("bloom", _LLAMA, n_head=4, n_layer=LAYERS),
    "falcon": _family("falcon", _LLAMA, new_decoder_architecture=True, num_kv_heads=2),
    "mpt": _family("mpt", vocab_size=VOCABULARY, d_model=32, n_heads=4, n_layers=LAYERS),
    "olmo2": _family("olmo2", _LLAMA),
    "granite": _family("granite", _LLAMA),
    "stablelm": _family("stablelm", _LLAMA, use_qkv_bias=True),
    "starcoder2": _family("starcoder2", _LLAMA),
    "cohere": _family("cohere", _LLAMA, use_qk_norm=True),
    "glm4": _family("glm4", _LLAMA, head_dim=8),
    "nemotron": _family("nemotron", _LLAMA),
    "smollm3": _family("smollm3", _LLAMA),
    "ernie4_5": _family("ernie4_5", _LLAMA, head_dim=8),
    "mixtral": _family("mixtral", _LLAMA, num_local_experts=4),
    "phimoe": _family("phimoe", _LLAMA, num_local_experts=4),
    "qwen2_moe": _family("qwen2_moe", _LLAMA, _EXPERTS, shared_expert_intermediate_size=24),
    "qwen3_moe": _family("qwen3_moe", _LLAMA, _EXPERTS, head_dim=8, decoder_sparse_step=1),
    "granitemoe": _family("granitemoe", _LLAMA, num_local_experts=4),
    "gpt_oss": _family("gpt_oss", _LLAMA, num_local_experts=4, head_dim=8, sliding_window=8),
    "deepseek_v3": _family("deepseek_v3", _LLAMA, _DEEPSEEK),
    "ernie4_5_moe": _family(
        "ernie4_5_moe", _LLAMA, moe_num_experts=4, moe_k=2, moe_intermediate_size=24, head_dim=8
    ),
    "minimax": _family("minimax", _LLAMA, num_local_experts=4, head_dim=8, block_size=8),
    "mamba": _family("mamba", _LLAMA, state_size=4, time_step_rank=4),
    "lfm2": _family("lfm2", _LLAMA, layer_types=["conv", "full_attention"], block_multiple_of=8),
    "qwen3_next": _family(
        "qwen3_next",
        _LLAMA,
        _EXPERTS,
        head_dim=8,
        shared_expert_intermediate_size=24,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
    ),
}
"""One configuration for each family, by a short name."""

KEEPS_FLOAT32 = ("deepseek_v3", "ernie4_5_moe")
"""Families of which transformers keeps some tensors in float32 when the model is in bfloat16."""


def make_model(name: str, seed: int, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of the family whose every parameter and saved buffer is random, none 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[name](), dtype=dtype)
    with torch.no_grad():
        for tensor in {id(t): t for t in model.state_dict(keep_vars=True).values()}.values():
            if tensor.is_floating_point():
                tensor.copy_(torch.empty(tensor.shape).normal_(0.1, 0.1, generator=generator))
    return model.eval()


def make_checkpoint(
    name: str, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """Writes a model of the family to `folder` as save_pretrained does, and returns the folder."""
    make_model(name, seed, dtype).save_pretrained(folder)
    return folder

"""A model's modules without its weights, and which of these are those of linear layers."""

from pathlib import Path
from typing import Any

from torch import device, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D


def read_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a model folder, as transformers completes it."""
    config: PretrainedConfig = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trust_remote_code
    )
    return config


def without_weights(
    config: PretrainedConfig, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The causal language model of a config, on the meta device."""
    automatic: Any = AutoModelForCausalLM
    with device("meta"):
        model: PreTrainedModel = automatic.from_config(config, trust_remote_code=trust_remote_code)
    return model


def linear_weights(folder: Path, *, trust_remote_code: bool = False) -> dict[str, bool]:
    """Names of the weights of linear layers; true where they are stored as [in, out] (Conv1D)."""
    config = read_config(folder, trust_remote_code=trust_remote_code)
    model = without_weights(config, trust_remote_code=trust_remote_code)
    return {
        f"{name}.weight": isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }

"""Which of a model's weights are those of linear layers, told from its modules."""

from pathlib import Path
from typing import Any

from torch import device, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D


def linear_weights(folder: Path, *, trust_remote_code: bool = False) -> dict[str, bool]:
    """Names of the weights of linear layers; true where they are stored as [in, out] (Conv1D)."""
    config = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trust_remote_code
    )
    with device("meta"):
        automatic: Any = AutoModelForCausalLM
        model = automatic.from_config(config, trust_remote_code=trust_remote_code)
    return {
        f"{name}.weight": isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }

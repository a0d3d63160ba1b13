"""Where accelerate keeps the tensors of a model that it dispatched, and where it uses them.

A module that is offloaded holds meta tensors. The real ones lie in a map of its hook, in host
memory, and are copied to the device where the module runs for each of its forward passes. A map
over files reads a new tensor each time, so that what is written into one is lost.
"""

from typing import Any

import torch
from torch import nn


def home(model: nn.Module, name: str) -> torch.Tensor | None:
    """The tensor that holds a parameter or buffer between passes; None where it is in a file."""
    module, tensor, leaf = _find(model, name)
    weights = getattr(_hook(module), "weights_map", None)
    if weights is not None and leaf in weights:
        tensor = weights[leaf]
        if tensor is not weights[leaf]:
            return None
    return None if tensor.is_meta else tensor.detach()


def used_on(model: nn.Module, name: str) -> torch.device:
    """The device on which the module of a parameter or buffer runs."""
    module, tensor, _ = _find(model, name)
    if not tensor.is_meta:
        return tensor.device
    device = getattr(_hook(module), "execution_device", None)
    if isinstance(device, int):
        return torch.device("cuda", device)
    return torch.device(device or "cpu")


def _find(model: nn.Module, name: str) -> tuple[nn.Module, torch.Tensor, str]:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    return module, getattr(module, leaf), leaf


def _hook(module: nn.Module) -> Any:
    """The hook that moves a module's tensors; a module may have several hooks, one in another."""
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))
    return next((each for each in hooks if getattr(each, "offload", False)), None)

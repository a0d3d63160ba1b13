"""Statistics of tensors, computed once per run and kept in its folder.

One small safetensors file per tensor, kind and set of models: several processes may fill the same
folder, and a file that was cut off is computed again.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from evomerge.checkpoints.writer import read_tensors, write_tensors
from evomerge.methods.statistics import Compute

log = logging.getLogger(__name__)

_LARGE = 2**18  # elements


class KeptStatistics:
    """Results by kind, tensor and models; in memory, and in a folder where one is given.

    hashes: of each model's weights, by name; a file is only used for models of equal hashes.
    device: where results of the size of a weight are held.
    """

    def __init__(
        self,
        folder: Path | None = None,
        hashes: Mapping[str, str] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._device = device or torch.device("cpu")
        self._folder = folder
        self._hashes = hashes or {}
        self._known: dict[tuple[str, str, tuple[str, ...]], Mapping[str, torch.Tensor]] = {}

    def get(
        self, kind: str, slot: str, models: tuple[str, ...], compute: Compute
    ) -> Mapping[str, torch.Tensor]:
        """What is known, else what the folder holds, else what `compute` returns."""
        key = (kind, slot, models)
        if key not in self._known:
            found = self._read(key) or self._made(key, compute)
            self._known[key] = {name: self._placed(tensor) for name, tensor in found.items()}
        return self._known[key]

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        """What is as large as a weight lies where weights are merged; the rest on the CPU."""
        return tensor.to(self._device) if tensor.numel() >= _LARGE else tensor

    def _made(
        self, key: tuple[str, str, tuple[str, ...]], compute: Compute
    ) -> Mapping[str, torch.Tensor]:
        made = compute()
        if (path := self._path(*key)) is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_tensors(path, made)
            except OSError as error:
                log.warning("%s is not kept, and computed again at a next start: %s", path, error)
        return made

    def _read(self, key: tuple[str, str, tuple[str, ...]]) -> Mapping[str, torch.Tensor] | None:
        path = self._path(*key)
        return None if path is None else read_tensors(path)

    def _path(self, kind: str, slot: str, models: tuple[str, ...]) -> Path | None:
        if self._folder is None:
            return None
        text = " ".join(self._hashes[model] for model in models)
        group = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self._folder / f"{kind}-{group}" / f"{slot}.safetensors"

"""The base and its sources, opened together: every tensor under one name, one shape."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from evomerge.checkpoints.adapter import Adapter, is_adapter
from evomerge.checkpoints.dequantised import open_checkpoint
from evomerge.checkpoints.locate import locate
from evomerge.checkpoints.source import Checkpoint
from evomerge.errors import UserError
from evomerge.merging.kept_statistics import KeptStatistics
from evomerge.merging.layout import Layout, Slot, read_layout
from evomerge.merging.placement import Placement
from evomerge.merging.stacking import Stacks
from evomerge.methods.statistics import Compute, TensorStatistics
from evomerge.recipe import BASE, Recipe

Source = Checkpoint | Adapter

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Models:
    """Operands of merges, by model name and slot name, as stored.

    Raises UserError for sources of another architecture, depth, shape or set of tensors.
    """

    def __init__(
        self,
        base: Checkpoint,
        sources: Mapping[str, Source],
        layout: Layout,
        *,
        trust_remote_code: bool = False,
    ) -> None:
        self.layout = layout
        self.stacks = Stacks(base.folder, layout, trust_remote_code)
        self.base = base
        self.checkpoints: Mapping[str, Source] = {BASE: base, **sources}
        self.kept = KeptStatistics()
        self._held: dict[tuple[str, str], torch.Tensor] = {}
        self._names: dict[str, dict[str, str]] = {}
        for name, checkpoint in self.checkpoints.items():
            try:
                canonical = layout.canonical(checkpoint.tensors)
            except UserError as error:
                raise UserError(f"{name} ({checkpoint.folder}): {error}") from None
            self._names[name] = {slot: stored for stored, slot in canonical.items()}
            self._check_shapes(name, checkpoint)
            self._check_ties(name, checkpoint)

    def read(self, model: str, slot: str) -> torch.Tensor:
        """The tensor as stored: on the device where it is held, else from the file, on the CPU.

        That of an adapter is formed from the base's, wherever that is.
        """
        source = self.checkpoints[model]
        if isinstance(source, Adapter):
            return source.applied(self._names[model][slot], self.read(BASE, slot))
        held = self._held.get((model, slot))
        return held if held is not None else self._stored(model, slot)

    def operands(self, slot: str, sources: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
        """The base's tensor, then the sources' of that name."""
        return tuple(self.read(model, slot) for model in (BASE, *sources))

    def statistics(
        self,
        slot: str,
        sources: tuple[str, ...],
        operands: tuple[torch.Tensor, ...],
        keys: tuple[int, ...],
    ) -> TensorStatistics:
        """The statistics of one tensor; what earlier candidates computed of it is kept."""
        names = (BASE, *sources)

        def keep(kind: str, of: tuple[int, ...], compute: Compute) -> Mapping[str, torch.Tensor]:
            return self.kept.get(kind, slot, tuple(names[operand] for operand in of), compute)

        return TensorStatistics(operands=operands, keys=keys, keep=keep)

    def hold(self, placement: Placement, devices: Mapping[str, torch.device]) -> None:
        """Keeps all tensors of all models in a device's memory, or pinned in the host's.

        devices: where each slot is merged. Nothing to do for `files`. So candidates read no file.
        Of adapters only factors are held.
        """
        if placement == "files":
            return
        for model, source in self.checkpoints.items():
            for slot in () if isinstance(source, Adapter) else self.layout.slots:
                stored = self._stored(model, slot)
                device = devices[slot]
                on_gpu = device.type == "cuda"
                if placement == "host":
                    self._held[model, slot] = stored.pin_memory() if on_gpu else stored.clone()
                else:
                    self._held[model, slot] = stored.to(device) if on_gpu else stored.clone()

    def forget(self) -> None:
        """Lets go of the memory-mapped pages that were read so far."""
        for checkpoint in self.checkpoints.values():
            checkpoint.forget()

    def bytes(self) -> int:
        """Bytes of all tensors of base and sources, as stored; of adapters, their factors."""
        adapters = {n: s for n, s in self.checkpoints.items() if isinstance(s, Adapter)}
        return sum(adapter.bytes() for adapter in adapters.values()) + sum(
            _bytes(self.checkpoints[model].tensors[stored].dtype, slot)
            for model, names in self._names.items()
            if model not in adapters
            for slot, stored in ((self.layout.slots[name], s) for name, s in names.items())
        )

    def _stored(self, model: str, slot: str) -> torch.Tensor:
        return self.checkpoints[model].read(self._names[model][slot])

    def _check_shapes(self, name: str, checkpoint: Source) -> None:
        for slot, stored in self._names[name].items():
            shape, expected = checkpoint.tensors[stored].shape, self.layout.slots[slot].shape
            if shape != tuple(expected):
                vocabulary = " (another vocabulary?)" if shape[1:] == tuple(expected)[1:] else ""
                raise UserError(
                    f"{name} ({checkpoint.folder}): tensor {stored} has shape {list(shape)}; "
                    f"expected the base's {list(expected)}{vocabulary}; only models of equal "
                    "shapes can be merged"
                )

    def _check_ties(self, name: str, checkpoint: Source) -> None:
        for copy, slot in self.layout.second_copies(checkpoint.tensors).items():
            if not torch.equal(checkpoint.read(copy), self._stored(name, slot)):
                raise UserError(
                    f"{name} ({checkpoint.folder}): {copy} and {slot} are tied in the base but "
                    "differ here; a mix of tied and untied embeddings cannot be merged"
                )


def open_models(
    recipe: Recipe, *, trust_remote_code: bool = False, relative_to: Path | None = None
) -> Models:
    """Opens what a recipe names: base and sources, laid out for the recipe's dtype.

    Reads headers only, but for quantised models, which are turned into plain ones once. UserError
    for what cannot be found, read, or merged.
    """
    found = locate(recipe.base.path, recipe.base.revision, relative_to=relative_to)
    base = open_checkpoint(found, trust_remote_code=trust_remote_code)
    sources: dict[str, Source] = {}
    for name, model in recipe.sources.items():
        folder = locate(model.path, model.revision, relative_to=relative_to)
        sources[name] = (
            Adapter(folder, base)
            if is_adapter(folder)
            else open_checkpoint(folder, trust_remote_code=trust_remote_code)
        )
    for name, checkpoint in sources.items():
        check_architecture(name, checkpoint, base)
    layout = read_layout(base.folder, DTYPES[recipe.dtype], trust_remote_code)
    return Models(base, sources, layout, trust_remote_code=trust_remote_code)


def check_hashes(models: Models, recipe: Recipe) -> None:
    """UserError where weights are not those that the recipe was made with. Reads every byte."""
    for name, checkpoint in models.checkpoints.items():
        expected = recipe.model(name).sha256
        if expected is not None and (got := checkpoint.sha256()) != expected:
            raise UserError(
                f"{name} ({checkpoint.folder}): the weights have changed: sha256 is {got}, the "
                f"recipe says {expected}; give the model that the recipe was made with"
            )


def check_architecture(name: str, checkpoint: Source, base: Checkpoint) -> None:
    """UserError where config.json tells another architecture or depth than the base's."""
    if found := differences(name, checkpoint, base):
        raise UserError(f"{found[0]}; only fine-tunes of one base model can be merged")


def differences(name: str, checkpoint: Source, base: Checkpoint) -> list[str]:
    """In words, all that the two config.json differ in and that a merge needs to be equal."""
    found = []
    for key, word in (
        ("model_type", "architecture"),
        ("num_hidden_layers", "depth"),
        ("n_layer", "depth"),
        ("hidden_size", "width"),
        ("vocab_size", "vocabulary size"),
        ("tie_word_embeddings", "tying of the embeddings"),
    ):
        got, expected = checkpoint.config.get(key), base.config.get(key)
        if got is not None and expected is not None and got != expected:
            found.append(
                f"{name} ({checkpoint.folder}): {word}: config.json says {key} {got!r}; the base "
                f"has {expected!r}"
            )
    return found


def _bytes(stored_dtype: str, slot: Slot) -> int:
    sizes = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2}
    return sizes.get(stored_dtype, 1) * math.prod(slot.shape)

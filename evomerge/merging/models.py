"""The base and its sources, opened together: every tensor under one name, one shape."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from evomerge.checkpoints.adapter import Adapter, is_adapter
from evomerge.checkpoints.dequantised import open_checkpoint
from evomerge.checkpoints.locate import locate
from evomerge.checkpoints.source import Checkpoint, TensorInfo
from evomerge.checkpoints.tokenizer import Vocabularies, read_vocabularies
from evomerge.errors import UserError
from evomerge.merging.activations import Activations
from evomerge.merging.kept_statistics import KeptStatistics
from evomerge.merging.layout import Layout, read_layout
from evomerge.merging.placement import Placement
from evomerge.merging.rows import read_rows, resized
from evomerge.merging.stacking import Stacks
from evomerge.methods.method import Inputs
from evomerge.methods.statistics import Compute, TensorStatistics
from evomerge.recipe import BASE, Recipe

Source = Checkpoint | Adapter

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Models:
    """Operands of merges, by model name and slot name, as stored.

    Rows of embeddings and heads are those of the merged model's vocabulary, matched by token, and
    `layout` is the merged model's. Raises UserError for sources of another architecture, depth,
    shape or set of tensors, and for tokens without rows.
    """

    def __init__(
        self,
        base: Checkpoint,
        sources: Mapping[str, Source],
        layout: Layout,
        vocabularies: Vocabularies | None = None,
        *,
        trust_remote_code: bool = False,
    ) -> None:
        """vocabularies: None where the base has no tokenizer: rows are matched by number."""
        self.vocabularies = vocabularies
        self.base = base
        self.checkpoints: Mapping[str, Source] = {BASE: base, **sources}
        self.kept = KeptStatistics()
        self.activations: Activations | None = None
        """None before `calibrate`."""
        self._held: dict[tuple[str, str], torch.Tensor] = {}
        self._moved: dict[tuple[str, str], torch.Tensor] = {}
        self._names: dict[str, dict[str, str]] = {}
        for name, checkpoint in self.checkpoints.items():
            try:
                canonical = layout.canonical(checkpoint.tensors)
            except UserError as error:
                raise UserError(f"{name} ({checkpoint.folder}): {error}") from None
            self._names[name] = {slot: stored for stored, slot in canonical.items()}
            self._check_shapes(name, checkpoint, layout)
            self._check_ties(name, checkpoint, layout)
        self._rows = read_rows(layout, self.checkpoints, self._names, vocabularies)
        """None where every row of every model stands for the same token as in the merged model."""
        self.layout = layout if self._rows is None else resized(layout, self._rows.total)
        self.stacks = Stacks(base.folder, self.layout, trust_remote_code)

    def read(self, model: str, slot: str) -> torch.Tensor:
        """The tensor as stored: on the device where it is held, else from the file, on the CPU.

        That of an adapter is formed from the base's, wherever that is. Of the vocabulary's slots
        [tokens, ...]: one row per token of the merged model. A token that the model lacks has the
        base's row, or, where the base lacks it too, the mean of the sources' that have it; such
        tensors are float32.
        """
        if self._rows is None or slot not in self.layout.vocabulary:
            return self.own(model, slot)
        moved = self._moved.get((model, slot))
        if moved is not None:
            return moved
        return self._rows.by_token(model, {n: partial(self.own, n, slot) for n in self.checkpoints})

    def own(self, model: str, slot: str) -> torch.Tensor:
        """As `read`, but with the model's own rows, padding included."""
        source = self.checkpoints[model]
        if isinstance(source, Adapter):
            return source.applied(self._names[model][slot], self.own(BASE, slot))
        held = self._held.get((model, slot))
        return held if held is not None else self._stored(model, slot)

    def padding(self, slot: str) -> torch.Tensor:
        """What follows the rows of `read` in the merged model, as the base stores it."""
        own = self.own(BASE, slot)
        if self._rows is None or slot not in self.layout.vocabulary:
            return own[:0]
        return self._rows.padding(own)

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
            if self._rows is not None and slot in self.layout.vocabulary:
                kind = f"{kind}_{self._rows.digest}"
            return self.kept.get(kind, slot, tuple(names[operand] for operand in of), compute)

        def inputs(source: int) -> Inputs | None:
            if self.activations is None:
                raise UserError("a method needs activations; expected `calibrate` to have run")
            return self.activations.inputs(names[source], slot)

        return TensorStatistics(operands=operands, keys=keys, keep=keep, inputs=inputs)

    @property
    def digest(self) -> str | None:
        """Of how rows of the vocabulary move; None where none do and none are padding."""
        return None if self._rows is None else self._rows.digest

    def hold(self, placement: Placement, devices: Mapping[str, torch.device]) -> None:
        """Keeps all tensors of all models in a device's memory, or pinned in the host's.

        devices: where each slot is merged. Nothing to do for `files`. So candidates read no file.
        Of adapters only factors are held, and tensors whose rows move.
        """
        if placement == "files":
            return

        def placed(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
            if device.type != "cuda":
                return tensor.clone()
            return tensor.pin_memory() if placement == "host" else tensor.to(device)

        for model, source in self.checkpoints.items():
            for slot in self.layout.slots:
                if self._moves(model, slot):
                    self._moved[model, slot] = placed(self.read(model, slot), devices[slot])
                elif not isinstance(source, Adapter):
                    self._held[model, slot] = placed(self._stored(model, slot), devices[slot])

    def forget(self) -> None:
        """Lets go of the memory-mapped pages that were read so far."""
        for checkpoint in self.checkpoints.values():
            checkpoint.forget()

    def bytes(self) -> int:
        """Bytes of all tensors of base and sources, as stored; of adapters, their factors."""
        adapters = {n: s for n, s in self.checkpoints.items() if isinstance(s, Adapter)}
        return sum(adapter.bytes() for adapter in adapters.values()) + sum(
            4 * math.prod(self.layout.slots[slot].shape)
            if self._moves(model, slot)
            else _bytes(self.checkpoints[model].tensors[stored])
            for model, names in self._names.items()
            for slot, stored in names.items()
            if model not in adapters or self._moves(model, slot)
        )

    def _stored(self, model: str, slot: str) -> torch.Tensor:
        return self.checkpoints[model].read(self._names[model][slot])

    def _moves(self, model: str, slot: str) -> bool:
        """Whether the rows that `read` gives are others than the model's first ones."""
        moved = self._rows is not None and model in self._rows.maps
        return moved and slot in self.layout.vocabulary

    def _check_shapes(self, name: str, checkpoint: Source, layout: Layout) -> None:
        for slot, stored in self._names[name].items():
            shape, expected = checkpoint.tensors[stored].shape, tuple(layout.slots[slot].shape)
            if slot in layout.vocabulary and shape[1:] == expected[1:]:
                continue
            if shape != expected:
                raise UserError(
                    f"{name} ({checkpoint.folder}): tensor {stored} has shape {list(shape)}; "
                    f"expected the base's {list(expected)}; only models of equal shapes can be "
                    "merged"
                )

    def _check_ties(self, name: str, checkpoint: Source, layout: Layout) -> None:
        for copy, slot in layout.second_copies(checkpoint.tensors).items():
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
    folders = {BASE: base.folder} | {name: source.folder for name, source in sources.items()}
    vocabularies = read_vocabularies(
        folders, recipe.vocabulary, trust_remote_code=trust_remote_code
    )
    return Models(base, sources, layout, vocabularies, trust_remote_code=trust_remote_code)


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
        ("tie_word_embeddings", "tying of the embeddings"),
    ):
        got, expected = checkpoint.config.get(key), base.config.get(key)
        if got is not None and expected is not None and got != expected:
            found.append(
                f"{name} ({checkpoint.folder}): {word}: config.json says {key} {got!r}; the base "
                f"has {expected!r}"
            )
    return found


def _bytes(stored: TensorInfo) -> int:
    sizes = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2}
    return sizes.get(stored.dtype, 1) * math.prod(stored.shape)

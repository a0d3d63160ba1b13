"""Stacks of layers: what a model becomes whose layers are taken out, repeated or put in order anew.

A stack is a tuple of numbers of the base's layers, first to last. transformers is asked, without
weights, what it would load of a config of that depth; whatever does not come out as the layers were
(another kind of attention, another shape of an embedding) is refused before a byte is read.
"""

import copy
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from evomerge.architectures import at_layer, layers_module, place
from evomerge.errors import UserError
from evomerge.merging.layout import Layout, Slot
from evomerge.merging.modules import read_config, without_weights

Stack = tuple[int, ...]

_NUMBERS_OF_LAYERS = ("mlp_only_layers", "full_attn_idxs")
"""Lists in configs that hold numbers of layers, not one entry per layer."""
_NOT_PER_LAYER = ("architectures", "eos_token_id", "bos_token_id", "pad_token_id")
_OF_THE_VOCABULARY = ("vocab_size", "num_embeddings", "out_features", "padding_idx")
"""Outside the layers these may be other than the base's: see `vocabulary` of a recipe."""
_DEPTH = "num_hidden_layers"
_PLAIN = (bool, int, float, str, type(None))

Facts = Mapping[tuple[str, str], Any]
"""(submodule, attribute or parameter) -> plain value, or shape."""


class Stacks:
    """The stacks that can be made of one base model."""

    def __init__(self, folder: Path, layout: Layout, trust_remote_code: bool = False) -> None:
        self._folder = folder
        self._layout = layout
        self._trust = trust_remote_code
        self._skeletons: dict[str, PreTrainedModel] = {}

    @property
    def depth(self) -> int:
        """Number of the base's layers."""
        return 1 + max(self._numbered, default=-1)

    def layout(self, stack: Stack) -> tuple[Layout, dict[str, str]]:
        """The layout of the stacked model, and from each of its slots to the base's it comes from.

        UserError for a layer that the base lacks, and for stacks that transformers would load as
        something else than these layers.
        """
        self._check(stack)
        origins: dict[str, str] = {}
        slots: dict[str, Slot] = {}
        layers = self._layers(stack)  # all of them where the first of the base's stood
        for slot in self._layout.slots.values():
            within = place(slot.name).layer is not None
            for moved, origin in layers if within else [(slot, slot)]:
                slots[moved.name], origins[moved.name] = moved, origin.name
        return replace(self._layout, slots=slots), origins

    def skeleton(self, stack: Stack) -> PreTrainedModel:
        """What transformers makes of the stacked config, without weights."""
        lists = _lists(self._config.get_text_config(), stack)
        key = f"{len(stack)} {lists}"  # all that the config says of a stack
        if key not in self._skeletons:
            self._skeletons[key] = without_weights(
                _restacked(self._config, stack), trust_remote_code=self._trust
            )
        return self._skeletons[key]

    def changes(self, stack: Stack, content: Mapping[str, Any]) -> dict[str, Any]:
        """The base's config.json, given as `content`, as the stacked model needs it."""
        language = self._config.get_text_config()
        key = language.attribute_map.get(_DEPTH, _DEPTH)
        values = {key: len(stack), **_lists(language, stack)}
        if key in content:
            return {**content, **values}
        section = next((k for k, v in content.items() if isinstance(v, dict) and key in v), None)
        if section is None:
            return {**content, **values}
        return {**content, section: {**content[section], **values}}

    def deepest(self, depth: int | None) -> list[Slot]:
        """The slots of a model of that many layers, as if each were as large as the largest; None:
        those of the base itself."""
        slots = list(self._layout.slots.values())
        if depth is None:
            return slots
        sizes = {
            layer: sum(math.prod(slot.shape) * slot.dtype.itemsize for slot in own)
            for layer, own in self._numbered.items()
        }
        ends = [slot for slot in slots if place(slot.name).layer is None]
        return ends + depth * self._numbered[max(sizes, key=lambda layer: sizes[layer])]

    def kinds(self) -> list[int]:
        """For each of the base's layers, the first layer that is of the same kind."""
        facts = [self._unnumbered(layer) for layer in self._facts]
        return [facts.index(own) for own in facts]

    @cached_property
    def container(self) -> str:
        """Name of the live module that holds the layers."""
        within = (s for s in self._layout.slots.values() if place(s.name).layer is not None)
        return layers_module(next(within).parameter)

    @cached_property
    def _numbered(self) -> dict[int, list[Slot]]:
        found: dict[int, list[Slot]] = defaultdict(list)
        for slot in self._layout.slots.values():
            if (layer := place(slot.name).layer) is not None:
                found[layer].append(slot)
        return dict(found)

    @cached_property
    def _config(self) -> PretrainedConfig:
        return read_config(self._folder, trust_remote_code=self._trust)

    @cached_property
    def _facts(self) -> list[Facts]:
        """Of each of the base's layers."""
        return [_facts_of(layer) for layer in self.layers_of(self._plain)]

    @property
    def _plain(self) -> PreTrainedModel:
        return self.skeleton(tuple(range(self.depth)))

    def layers_of(self, model: nn.Module) -> nn.ModuleList:
        """The layers of a model of this architecture, live or without weights."""
        layers = model.get_submodule(self.container)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @cached_property
    def _numberings(self) -> set[tuple[str, str]]:
        """Attributes that hold the layer's own number: layer_idx, layer_number, ..."""
        named = {
            key
            for facts in self._facts
            for key in facts
            if re.search(r"(^|_)(idx|index|number|id)$", key[1])
        }
        return {
            key
            for key in named
            if all(facts.get(key, layer) == layer for layer, facts in enumerate(self._facts))
        }

    def _unnumbered(self, facts: Facts) -> Facts:
        return {key: value for key, value in facts.items() if key not in self._numberings}

    def _check(self, stack: Stack) -> None:
        missing = [layer for layer in stack if layer not in self._numbered]
        if missing or not stack:
            raise UserError(
                f"stack: layer {missing[0] if missing else 'none'}: the base has layers 0 to "
                f"{self.depth - 1}"
            )
        aliases = [*self._layout.aliases, *self._layout.tied]
        if any(place(name).layer is not None for name in aliases):
            raise UserError(
                "stack: some of this architecture's layers share their weights; expected layers "
                "with weights of their own"
            )
        model = self.skeleton(stack)
        for position, layer in enumerate(self.layers_of(model)):
            ours, theirs = map(self._unnumbered, (self._facts[stack[position]], _facts_of(layer)))
            if ours != theirs:
                changed = next(k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k))
                raise UserError(
                    f"stack: layer {stack[position]} of the base cannot stand at place {position} "
                    f"of {len(stack)}: there {'.'.join(filter(None, changed))} is "
                    f"{theirs.get(changed)!r} instead of {ours.get(changed)!r}, since this "
                    "architecture lets the number of a layer decide; expected a place where it is "
                    "equal"
                )
        plain, stacked = (
            {n: p.shape for n, p in m.named_parameters() if not n.startswith(f"{self.container}.")}
            for m in (self._plain, model)
        )
        if plain != stacked:
            name = next(n for n in {**plain, **stacked} if plain.get(n) != stacked.get(n))
            raise UserError(
                f"stack: the shape of {name} depends on the number of layers; expected a stack of "
                f"{self.depth} layers for this architecture"
            )

    def _layers(self, stack: Stack) -> Iterator[tuple[Slot, Slot]]:
        """Every slot of the stacked layers, and the one it comes from."""
        for number, layer in enumerate(stack):
            for slot in self._numbered[layer]:
                name, parameter = (at_layer(n, number) for n in (slot.name, slot.parameter))
                yield replace(slot, name=name, parameter=parameter), slot


class LayerPool:
    """The layers of a live model, rearranged in place; those that a stack leaves out wait here.

    A layer that a stack needs more often than there are modules of its kind is copied once.
    """

    def __init__(self, model: PreTrainedModel, stacks: Stacks) -> None:
        self._model = model
        self._stacks = stacks
        self._kinds = stacks.kinds()
        self._container = stacks.layers_of(model)
        self._waiting: dict[int, list[nn.Module]] = defaultdict(list)
        for kind, layer in zip(self._kinds, self._container, strict=True):
            self._waiting[kind].append(layer)

    def arrange(self, stack: Stack) -> list[int]:
        """Gives the live model the depth and kinds of the stack, and returns the places whose
        module is another than before; weights are not moved."""
        skeleton = self._stacks.skeleton(stack)
        before = list(self._container)
        used: dict[int, int] = defaultdict(int)
        layers = []
        for layer in stack:
            kind = self._kinds[layer]
            waiting = self._waiting[kind]
            if used[kind] == len(waiting):
                waiting.append(copy.deepcopy(waiting[0]))
            layers.append(waiting[used[kind]])
            used[kind] += 1
        self._container._modules.clear()
        self._container.extend(layers)
        _take_over(self._model, skeleton, self._stacks.container)
        return [n for n, new in enumerate(layers) if n >= len(before) or new is not before[n]]


def _restacked(config: PretrainedConfig, stack: Stack) -> PretrainedConfig:
    config = copy.deepcopy(config)
    language = config.get_text_config()
    values = _lists(language, stack)
    setattr(language, _DEPTH, len(stack))
    for name, value in values.items():
        setattr(language, name, value)
    return config


def _lists(config: PretrainedConfig, stack: Stack) -> dict[str, list[Any]]:
    """The config's lists of one entry per layer, and its lists of layers' numbers, restacked."""
    depth = getattr(config, _DEPTH)
    found = {
        name: [value[layer] for layer in stack]
        for name, value in vars(config).items()
        if isinstance(value, (list, tuple))
        and len(value) == depth
        and not name.startswith("_")
        and name not in (*_NOT_PER_LAYER, *_NUMBERS_OF_LAYERS)
    }
    for name in _NUMBERS_OF_LAYERS:
        if numbers := getattr(config, name, None):
            found[name] = [new for new, layer in enumerate(stack) if layer in numbers]
    return found


def _facts_of(layer: nn.Module) -> Facts:
    facts: dict[tuple[str, str], Any] = {}
    for path, module in layer.named_modules():
        facts[path, ""] = type(module)
        facts |= {(path, name): value for name, value in _plain_attributes(module).items()}
    tensors = (*layer.named_parameters(), *layer.named_buffers())
    return facts | {(name, "shape"): tuple(tensor.shape) for name, tensor in tensors}


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if name != "training" and not name.startswith("_") and isinstance(value, _PLAIN)
    }


def _take_over(model: PreTrainedModel, skeleton: PreTrainedModel, layers: str) -> None:
    """Plain attributes of every module, and what of the config tells the depth, as in skeleton."""
    twins = dict(skeleton.named_modules())
    for path, module in model.named_modules():
        for name, value in _plain_attributes(twins[path]).items():
            if name not in _OF_THE_VOCABULARY or ".".join((path, name)).startswith(layers):
                setattr(module, name, value)
    ours, theirs = model.config.get_text_config(), skeleton.config.get_text_config()
    depth = getattr(theirs, _DEPTH)
    for name, value in vars(theirs).items():
        if isinstance(value, (list, tuple)) and getattr(ours, name, None) != value:
            setattr(ours, name, value)
    setattr(ours, _DEPTH, depth)

"""From the names of tensors on disk to writable views in a live transformers module.

Checkpoints and modules disagree: on disk every expert has its own matrices, in memory all of a
layer's experts are one parameter; others are renamed, joined or transposed. transformers knows how
(it reverts its conversions when it saves); here that knowledge is asked once, without a byte of
weights, so that no family needs a line of its own.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from evomerge.checkpoints.source import Checkpoint
from evomerge.errors import UserError
from evomerge.merging.modules import read_config, without_weights
from evomerge.merging.offloaded import home

_SLACK = 1_000_000  # weights
_SAID = 2000  # characters of what transformers says


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One tensor as it is named on disk, and the elements of a live tensor that hold it."""

    name: str
    """As save_pretrained writes it."""
    parameter: str
    """Name of the live parameter or persistent buffer."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Elements of the live tensor between neighbours along each dimension."""
    offset: int
    """Element of the live tensor, flattened, where the slot starts."""
    dtype: torch.dtype
    """Of the live tensor: float32 where transformers keeps a module so in a bfloat16 model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """All tensors of a model, by their names on disk."""

    slots: Mapping[str, Slot]
    """In the order in which transformers saves them: by name, numbers compared as numbers."""
    aliases: Mapping[str, str]
    """Names on disk of tied weights, with the slot that each shares (lm_head.weight: ...)."""
    tied: Mapping[str, str]
    """The same by live names."""
    prefix: str
    """Of the base model within the live model: `transformer` for GPT-2."""
    ignored: tuple[str, ...]
    """Patterns of names that checkpoints hold and transformers leaves out (masks, old buffers)."""
    vocabulary: tuple[str, ...] = ()
    """Slots whose first dimension is the vocabulary: input embeddings, head, the head's bias."""

    def canonical(self, names: Iterable[str]) -> dict[str, str]:
        """From each of a checkpoint's names to its slot's; names that are not used are left out.

        A checkpoint may lack or add the base model's prefix, and may hold a tied weight under its
        other name. Where it holds both, the alias is left out: see `second_copies`. UserError names
        what fits no slot, what fits one twice, and slots that nothing fits.
        """
        names = tuple(names)
        known, copies = self._recognise(names), self.second_copies(names)
        unknown = [name for name in names if name not in known]
        unknown = [n for n in unknown if not any(re.search(p, n) for p in self.ignored)]
        if unknown:
            raise UserError(
                f"the checkpoint has tensors that the base model has no place for: {_some(unknown)}"
                "; expected those of the base model's architecture: use fine-tuned versions of "
                "this very base"
            )
        found = {n: self.aliases.get(s, s) for n, s in known.items() if n not in copies}
        self._check_one_to_one(found)
        return found

    def second_copies(self, names: Iterable[str]) -> dict[str, str]:
        """Names that repeat a slot that the checkpoint also holds under its own name.

        Maps each to its slot. The two must be equal, or the checkpoint is not tied as the base is.
        """
        known = self._recognise(names)
        held = set(known.values())
        return {n: self.aliases[s] for n, s in known.items() if self.aliases.get(s) in held}

    def _recognise(self, names: Iterable[str]) -> dict[str, str]:
        """The slot or alias of each name that is one, with or without the prefix."""
        known = {}
        for name in names:
            for spelling in (name, f"{self.prefix}.{name}", name.removeprefix(f"{self.prefix}.")):
                if spelling in self.slots or spelling in self.aliases:
                    known[name] = spelling
                    break
        return known

    def _check_one_to_one(self, found: Mapping[str, str]) -> None:
        first: dict[str, str] = {}
        for name, slot in found.items():
            if first.setdefault(slot, name) != name:
                raise UserError(
                    f"the checkpoint has the tensor {slot!r} twice, as {first[slot]!r} and as "
                    f"{name!r}; expected one: remove the other from its files"
                )
        if missing := [slot for slot in self.slots if slot not in first]:
            raise UserError(
                f"the checkpoint lacks tensors that the base model has: {_some(missing)}; expected "
                "all of them: a tied head must be tied in all models or in none, and a LoRA "
                "adapter is named as an adapter, not as a checkpoint"
            )


def read_layout(folder: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> Layout:
    """The layout of the model in a checkpoint folder, loaded with `dtype`. Reads no weights.

    UserError if transformers cannot load the folder, if the folder lacks weights, or if a tensor on
    disk is no strided view of one live parameter.
    """
    model, info = _load_skeleton(folder, dtype, trust_remote_code)
    live = model.state_dict()
    tied: dict[str, str] = dict(model.all_tied_weights_keys or {})
    missing = set(info["missing_keys"])
    if lost := [name for name, _ in model.named_parameters() if name in missing]:
        raise UserError(
            f"{folder}: the weights are incomplete: {_some(lost)} not found; expected all of the "
            "model's parameters: download or copy the folder again"
        )
    # Buffers that older checkpoints lack keep the values that the module makes for itself.
    unsaved = missing | set(model._keys_to_ignore_on_save or ())
    traced = _trace(model, {n: live[n] for n in live if n in tied or n not in unsaved})
    slots = {slot.name: slot for slot in traced if slot.parameter not in tied}
    _check_cover(slots.values(), live)
    names = {(s.parameter, s.offset, s.shape): s.name for s in slots.values()}
    shared = [slot for slot in traced if slot.parameter in tied]
    return Layout(
        slots=slots,
        aliases={s.name: names[tied[s.parameter], s.offset, s.shape] for s in shared},
        tied=tied,
        prefix=model.base_model_prefix,
        ignored=_ignored_patterns(model),
        vocabulary=_vocabulary_slots(model, slots.values()),
    )


@torch.no_grad()
def live_views(model: torch.nn.Module, layout: Layout) -> dict[str, torch.Tensor]:
    """A writable view into the live model for every slot, by the slot's name and in its order.

    `model` is what from_pretrained made of the layout's folder and dtype. Of parameters that are
    offloaded to the CPU, the view is of what the next pass copies to the device. UserError if a
    destination is on the disk, or is no longer what the layout describes.
    """
    for alias, main in layout.tied.items():
        one, other = home(model, alias), home(model, main)
        if one is not None and other is not None and one.data_ptr() != other.data_ptr():
            raise UserError(
                f"the base model's config ties {alias!r} to {main!r}, but its files hold two "
                "different tensors; expected equal ones, or tie_word_embeddings: false in its "
                "config.json"
            )
    views = {}
    for name, slot in layout.slots.items():
        tensor = _writable(home(model, slot.parameter), slot)
        start = tensor.storage_offset() + slot.offset
        views[name] = tensor.as_strided(slot.shape, slot.strides, start)
    return views


def _writable(tensor: torch.Tensor | None, slot: Slot) -> torch.Tensor:
    # A write to what lies in a file would be lost without a word.
    if tensor is None:
        raise UserError(
            f"the parameter {slot.parameter!r} is offloaded to the disk, where no candidate can be "
            "written; expected a model that fits into the memory of all GPUs and the host: use "
            "more or larger ones, or a smaller dtype"
        )
    if tensor.dtype != slot.dtype or not tensor.is_contiguous():
        raise UserError(
            f"the parameter {slot.parameter!r} is {tensor.dtype} with strides {tensor.stride()}; "
            f"expected contiguous {slot.dtype}: load the model without quantisation, with the "
            "dtype of the layout"
        )
    return tensor


def _load_skeleton(
    folder: Path, dtype: torch.dtype, trust_remote_code: bool
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """The model on the meta device, as from_pretrained makes it of the folder's headers.

    Given the folder itself, from_pretrained would read all weights and throw them away.
    """
    headers = {
        name: torch.empty(info.shape, dtype=info.torch_dtype or torch.int64, device="meta")
        for name, info in Checkpoint(folder).tensors.items()
    }
    try:
        config = read_config(folder, trust_remote_code=trust_remote_code)
        _check_depth(config, len(headers))
        plain = without_weights(config, trust_remote_code=trust_remote_code)
        _check_weights(plain, headers.values())
        family: Any = type(plain)
        model, info = family.from_pretrained(
            None,
            config=config,
            state_dict=headers,
            dtype=dtype,
            device_map="meta",
            output_loading_info=True,
        )
    except UserError:
        raise
    except Exception as error:  # configurations fail in ways of their own
        raise UserError(
            f"{folder}: transformers cannot load this as a causal language model; expected the "
            f"config.json and weights of one. It says: {str(error)[:_SAID]}"
        ) from error
    return model, info


def _check_depth(config: Any, tensors: int) -> None:
    """ValueError for more layers than there are tensors: modules of all would be made first."""
    for part in (config, config.get_text_config()):
        depth = getattr(part, "num_hidden_layers", None)
        if depth is not None and not (isinstance(depth, int) and 0 < depth <= tensors):
            raise ValueError(f"config.json tells {depth!r} layers, and there are {tensors} tensors")


def _check_weights(plain: PreTrainedModel, headers: Iterable[torch.Tensor]) -> None:
    """ValueError for a model of more weights than the files have: its buffers would be made."""
    wanted = sum(parameter.numel() for parameter in plain.parameters())
    held = sum(header.numel() for header in headers)
    if wanted > 2 * held + _SLACK:  # twice: a head may be tied in one and not in the other
        raise ValueError(f"config.json tells of {wanted} weights, and the files have {held}")


def _vocabulary_slots(model: PreTrainedModel, slots: Iterable[Slot]) -> tuple[str, ...]:
    head: torch.nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    ends = (model.get_input_embeddings(), head)
    parameters = {id(p) for end in ends if end is not None for p in end.parameters(recurse=False)}
    names = {n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in parameters}
    return tuple(slot.name for slot in slots if slot.parameter in names)


def _ignored_patterns(model: PreTrainedModel) -> tuple[str, ...]:
    """What transformers drops without a warning, in PreTrainedModel as it loads."""
    patterns = set(model._keys_to_ignore_on_load_unexpected or ())
    patterns |= {rf"(^|\.){re.escape(name)}$" for name in model._keys_to_ignore_on_save or ()}
    buffers = [name for name, _ in model.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.add(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.add(r"(^|\.)position_ids$")
    return tuple(sorted(patterns))


class _CopiesAreViews(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies of meta tensors become views of what they copy.

    Chunks, slices, transposes and the copies that make them contiguous then all keep the storage
    that they started from, and their offset and strides say where each element came from. An
    operation that cannot be a view (joining two parameters, permuting rows) still makes a new
    storage, and so gives itself away.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.clone.default:
            return torch.ops.aten.alias.default(args[0])
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError:
            # A new shape that the strides do not allow: this copy must be one.
            if func not in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
                raise
            return func(args[0].clone(memory_format=torch.contiguous_format), *args[1:])


def _trace(model: PreTrainedModel, live: Mapping[str, torch.Tensor]) -> list[Slot]:
    """Slots of live tensors: transformers' way to disk, walked by tensors without memory."""
    origins = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in live.items()
    }
    names = {tensor.untyped_storage()._cdata: name for name, tensor in origins.items()}
    with torch.no_grad(), _CopiesAreViews():  # type: ignore[no-untyped-call]
        on_disk = revert_weight_conversion(model, dict(origins))
    slots = []
    for name, tensor in on_disk.items():
        parameter = names.get(tensor.untyped_storage()._cdata)
        if parameter is None:
            raise _not_a_view(name)
        slots.append(
            Slot(
                name=name,
                parameter=parameter,
                shape=tuple(tensor.shape),
                strides=tensor.stride(),
                offset=tensor.storage_offset(),
                dtype=tensor.dtype,
            )
        )
    return slots


def _check_cover(slots: Collection[Slot], live: Mapping[str, torch.Tensor]) -> None:
    """The slots of a live tensor have as many elements as it has: none is forgotten or doubled."""
    covered: Counter[str] = Counter()
    for slot in slots:
        covered[slot.parameter] += math.prod(slot.shape)
    for slot in slots:
        if covered[slot.parameter] != live[slot.parameter].numel():
            raise _not_a_view(slot.name)


def _not_a_view(name: str) -> UserError:
    return UserError(
        f"the tensor {name!r} is not one evenly strided part of one parameter in memory, because "
        "transformers joins or reorders weights of this architecture as it loads; expected an "
        "architecture that it only renames, splits or stacks: this one cannot be merged in place"
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"

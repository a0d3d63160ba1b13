"""A LoRA adapter (a PEFT folder) that reads like a checkpoint: the base's tensors, plus low rank.

W' = W + s B A, with s = α/r, or α/√r for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732); for DoRA
(Liu et al. 2024, arXiv 2402.09353) W' = m (W + s B A) / ‖W + s B A‖, the norm of each output row.
Only the factors are held; a dense tensor is formed when it is asked for, in float32.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.source import Checkpoint, TensorInfo, combine_hashes, open_file, read_json
from evomerge.errors import UserError
from evomerge.files import sha256_of_file

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_REPEATS = 2
"""Repeats in a pattern: the time of a search grows with a power of that."""
_KINDS = r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?$"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """How one of the base's tensors is changed; names are those in the adapter's file."""

    full: str | None = None
    """A whole tensor that replaces the base's; of embeddings and heads perhaps with more rows."""
    down: str | None = None
    """A: [r, in]."""
    up: str | None = None
    """B: [out, r]."""
    magnitude: str | None = None
    """DoRA's m: [out]."""
    scale: float = 1.0
    transposed: bool = False
    """The weight is stored as [in, out]: embeddings, and the Conv1D layers of GPT-2."""


class Adapter:
    """One PEFT folder on a base, open for reading; a source like a `Checkpoint`.

    Raises UserError for adapters other than LoRA, pickled weights, and tensors that the base has
    no place for.
    """

    def __init__(self, folder: Path, base: Checkpoint) -> None:
        self.folder = folder
        self.config = base.config
        self._base = base
        self._settings = read_json(folder / CONFIG)
        kind = self._settings.get("peft_type")
        if kind != "LORA":
            raise UserError(
                f"{folder / CONFIG}: peft_type is {kind!r}; expected 'LORA': merge other adapters "
                "into a full model with peft first (merge_and_unload)"
            )
        if not (folder / WEIGHTS).exists():
            raise UserError(
                f"{folder}: has no {WEIGHTS}; expected the adapter's weights as safetensors (an "
                "adapter_model.bin is pickled: load it with peft and save it again)"
            )
        self._open = open_file(folder / WEIGHTS)
        self._changes = self._read_changes()
        self._moved: dict[tuple[str, torch.device], torch.Tensor] = {}
        self.tensors: Mapping[str, TensorInfo] = {
            name: replace(info, dtype="F32", shape=self._shape(name, self._changes[name]))
            if name in self._changes
            else info
            for name, info in base.tensors.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """The base's tensor with the adapter in it, on the CPU."""
        return self.applied(name, self._base.read(name))

    @torch.no_grad()
    def applied(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The adapter in the base's `weight`: float32, on its device; `weight` if unchanged."""
        change = self._changes.get(name)
        if change is None:
            return weight
        if change.full is not None:
            weight = self._tensor(change.full, weight.device)
        if change.down is None or change.up is None:
            return weight
        product = self._tensor(change.up, weight.device) @ self._tensor(change.down, weight.device)
        product = change.scale * (product.T if change.transposed else product)
        changed = weight.float() + product
        if change.magnitude is None:
            return changed
        rows = changed.T if change.transposed else changed
        magnitude = self._tensor(change.magnitude, weight.device).flatten()
        rows = rows * (magnitude / torch.linalg.norm(rows, dim=1)).unsqueeze(1)
        result: torch.Tensor = rows.T if change.transposed else rows
        return result

    def forget(self) -> None:
        """As `Checkpoint.forget`; an adapter is small."""

    def files(self) -> list[Path]:
        """What determines the adapter: weights and settings."""
        return [self.folder / CONFIG, self.folder / WEIGHTS]

    def sha256(self) -> str:
        """Hash of the adapter's weights and settings; the base has its own."""
        return combine_hashes({path.name: sha256_of_file(path) for path in self.files()})

    def bytes(self) -> int:
        """Size of the adapter's files."""
        return sum(path.stat().st_size for path in self.files())

    def _tensor(self, name: str, device: torch.device) -> torch.Tensor:
        if (name, device) not in self._moved:
            self._moved[name, device] = self._open.get_tensor(name).float().to(device)
        return self._moved[name, device]

    def _read_changes(self) -> dict[str, _Change]:
        parts: dict[str, dict[str, str]] = {}
        changes: dict[str, _Change] = {}
        stored = set(self._open.keys())
        for name in sorted(stored):
            plain = name.removeprefix(_PREFIX).replace(".modules_to_save.", ".")
            # peft saves resized embeddings under several names: the trained, and the one before.
            again = plain != name.removeprefix(_PREFIX) and _PREFIX + plain in stored
            if again or ".original_module." in plain:
                continue
            if match := re.search(_KINDS, plain):
                parts.setdefault(plain[: match.start()], {})[match[1]] = name
            elif not self._repeats_a_tied_tensor(plain, name):
                changes[self._place(plain.replace(".base_layer.", "."), name)] = _Change(full=name)
        for module, names in parts.items():
            place = self._place(f"{module}.weight", next(iter(names.values())))
            replaced = changes[place].full if place in changes else None
            changes[place] = replace(self._low_rank(module, place, names), full=replaced)
        for place, change in changes.items():
            self._check_shape(place, change)
        return changes

    def _repeats_a_tied_tensor(self, plain: str, stored: str) -> bool:
        """Whether it is the second name of a tied tensor, which peft saves under both."""
        if plain in self._base.tensors or not self.config.get("tie_word_embeddings"):
            return False
        tensor = self._open.get_tensor(stored)
        others = (
            name
            for name in self._open.keys()  # noqa: SIM118
            if name != stored and ".original_module." not in name
        )
        return any(
            self._open.get_slice(name).get_shape() == list(tensor.shape)
            and torch.equal(self._open.get_tensor(name), tensor)
            for name in others
        )

    def _place(self, wanted: str, stored: str) -> str:
        """The base's name of a tensor; checkpoints may leave out the base model's prefix."""
        known = self._base.tensors
        # The longest comes first.
        ends = [wanted, *(wanted[dot + 1 :] for dot, sign in enumerate(wanted) if sign == ".")]
        found = next((end for end in ends if end in known), None)
        if found is None:
            raise UserError(
                f"{self.folder / WEIGHTS}: {stored} changes {wanted!r}, which the base does not "
                "have (a tied head is no tensor of its own); expected an adapter of this very base"
            )
        return found

    def _low_rank(self, module: str, place: str, names: Mapping[str, str]) -> _Change:
        embedding = "lora_embedding_A" in names
        kinds = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if any(kind not in names for kind in kinds):
            raise UserError(
                f"{self.folder / WEIGHTS}: {module} has only {', '.join(sorted(names))}; expected "
                f"{' and '.join(kinds)}"
            )
        down, up = (names[kind] for kind in kinds)
        rank = self._rank(down, up)
        alpha = self._pattern("alpha_pattern", module, self._settings.get("lora_alpha") or rank)
        root = self._settings.get("use_rslora", False)
        return _Change(
            down=down,
            up=up,
            magnitude=names.get("lora_magnitude_vector"),
            scale=alpha / (math.sqrt(rank) if root else rank),
            transposed=embedding or bool(self._settings.get("fan_in_fan_out")),
        )

    def _pattern(self, key: str, module: str, default: float) -> float:
        """A value that may differ by module; patterns match whole ends of names, as in PEFT."""
        patterns: dict[str, Any] = self._settings.get(key) or {}
        if not isinstance(patterns, dict):
            raise UserError(f"{self.folder / CONFIG}: {key}: expected a mapping of patterns")
        for pattern, value in patterns.items():
            if self._matcher(key, pattern).match(module):
                return self._number(f"{key}.{pattern}", value)
        return self._number("lora_alpha", default)

    def _matcher(self, key: str, pattern: str) -> re.Pattern[str]:
        """UserError for what is no pattern, or one whose search may take for ever."""
        try:
            found = re.compile(rf"(.*\.)?({pattern})$")
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(
                f"{self.folder / CONFIG}: {key}: {pattern!r:.80} is no regular expression: {error}"
            ) from error
        repeats = re.findall(r"[*+{]", pattern)
        if len(repeats) > _REPEATS or re.search(r"\)[*+{]|\\[1-9]|\(\?P=", pattern):
            raise UserError(
                f"{self.folder / CONFIG}: {key}: {pattern!r:.80} repeats groups, or more than "
                f"{_REPEATS} times; expected names of modules, or simple patterns"
            )
        return found

    def _number(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
            raise UserError(f"{self.folder / CONFIG}: {key}: {value!r:.80}; expected a number")
        return float(value)

    def _rank(self, down: str, up: str) -> int:
        """r, of two factors that can be multiplied; UserError where they cannot."""
        first, second = (self._open.get_slice(name).get_shape() for name in (down, up))
        if len(first) != 2 or len(second) != 2 or first[0] != second[1] or first[0] < 1:
            raise UserError(
                f"{self.folder / WEIGHTS}: {down} has shape {first} and {up} {second}; expected "
                "[r, in] and [out, r]"
            )
        return int(first[0])

    def _shape(self, place: str, change: _Change) -> tuple[int, ...]:
        """Of the changed tensor: the base's, or that of a whole tensor with other rows."""
        if change.full is None:
            return self._base.tensors[place].shape
        return tuple(self._open.get_slice(change.full).get_shape())

    def _check_shape(self, place: str, change: _Change) -> None:
        shape = self._base.tensors[place].shape
        got = whole = self._shape(place, change)
        if change.down is not None:
            rows = self._open.get_slice(change.up).get_shape()[0]
            columns = self._open.get_slice(change.down).get_shape()[1]
            got = (columns, rows) if change.transposed else (rows, columns)
        if change.magnitude is not None:
            lengths = self._open.get_slice(change.magnitude).get_shape()
            if math.prod(lengths) != got[1 if change.transposed else 0]:
                raise UserError(
                    f"{self.folder / WEIGHTS}: {change.magnitude} has shape {lengths}; "
                    f"expected one number for each of the rows of {place}"
                )
        # Whether a whole tensor may have other rows than the base's depends on its place.
        if got != whole or whole[1:] != shape[1:]:
            raise UserError(
                f"{self.folder / WEIGHTS}: the adapter's change of {place} has shape {list(got)}; "
                f"the base's tensor has {list(shape)}; expected an adapter of this very base"
            )


def is_adapter(folder: Path) -> bool:
    """Whether a model folder holds a PEFT adapter."""
    return (folder / CONFIG).exists()

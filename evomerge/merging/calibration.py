"""Runs sources on a calibration text, and keeps the Gram matrices of what their linear layers read.

One source at a time is in memory, with the Gram matrices of a few gigabytes of layers; more layers
take further passes over the text.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from evomerge.architectures import place
from evomerge.checkpoints.tokenizer import load_tokenizer
from evomerge.errors import UserError
from evomerge.files import sha256_of_file
from evomerge.merging.activations import Activations, Entry
from evomerge.merging.layout import Layout, Slot
from evomerge.merging.models import Models
from evomerge.merging.workspace import Workspace
from evomerge.methods import look_up
from evomerge.recipe import BASE, Calibration, Recipe, Rule

log = logging.getLogger(__name__)

_PASS_BYTES = 4 * 2**30  # of Gram matrices that are accumulated in one pass over the text
_MOST_CHARACTERS = 32  # per token that is asked for; what lies behind is not tokenised


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A linear layer and the slots that its weight is made of."""

    module: str
    features: int
    """Numbers that it is fed per token."""
    slots: Mapping[str, int]
    """Slot -> dimension that meets the inputs."""


def calibrate(
    recipe: Recipe,
    models: Models,
    sources: Sequence[str] | None = None,
    *,
    device: torch.device,
    folder: Path | None = None,
    device_map: str | None = None,
    max_memory: Mapping[str | int, int] | None = None,
    trust_remote_code: bool = False,
    pass_bytes: int = _PASS_BYTES,
) -> None:
    """Makes the activations of sources known to `models`, where they are not yet.

    sources: by default those of the recipe's rules whose method needs activations. folder: where
    Gram matrices are kept, by the hashes of models and text; without one, in a temporary folder for
    as long as `models` lives. device, device_map, max_memory: of the live model, see `Workspace`.
    UserError for a text that is missing, changed, or empty.
    """
    wanted = tuple(sources if sources is not None else calibrated_sources(recipe))
    if not wanted:
        return
    if recipe.calibration is None:
        raise UserError(
            "a method needs activations, and the recipe names no calibration text; add "
            "`calibration: {file: text.txt}` with a text like those that the model is to read"
        )
    if models.activations is None:
        models.activations = Activations(folder)
    keys = {source: _key(recipe, source, models.digest) for source in wanted}
    missing = [s for s in wanted if not models.activations.find(s, keys[s])]
    if not missing:
        return
    check_text(recipe.calibration)
    texts = [t.to(device) for t in _sequences(recipe.calibration, models, trust_remote_code)]
    workspace = Workspace(
        models,
        dtype=getattr(torch, recipe.dtype),
        device=device,
        device_map=device_map,
        max_memory=max_memory,
        trust_remote_code=trust_remote_code,
    )
    index: Mapping[str, Entry] = {}
    for source in missing:
        start = time.perf_counter()
        rule = Rule(method="passthrough", sources=(source,))
        workspace.load(replace(recipe, rules=(rule,), stack=None))
        index = _measure(
            workspace.model, models.layout, texts, models.activations, keys[source], pass_bytes
        )
        models.activations.find(source, keys[source])
        tokens, seconds = sum(map(len, texts)), time.perf_counter() - start
        log.info("activations of %s: %d tokens, %.1f s", source, tokens, seconds)
    _announce(models.layout, index)


def calibrated_sources(recipe: Recipe) -> tuple[str, ...]:
    """Sources whose activations the recipe's rules need."""
    rules = [rule for rule in recipe.rules if "activations" in look_up(rule.method).needs]
    return tuple(dict.fromkeys(source for rule in rules for source in rule.sources))


def check_text(calibration: Calibration) -> str:
    """The text's hash; UserError where it cannot be read, or is not the one that was meant."""
    found = text_hash(calibration)
    if calibration.sha256 not in (None, found):
        raise UserError(
            f"calibration: {calibration.file}: the text has changed: sha256 is {found}, the recipe "
            f"says {calibration.sha256}; give the text that the recipe was made with"
        )
    return found


def text_hash(calibration: Calibration) -> str:
    """SHA-256 of the text; UserError if it cannot be read."""
    try:
        return sha256_of_file(Path(calibration.file))
    except OSError as error:
        raise UserError(
            f"calibration: {calibration.file}: cannot be read: {error}; expected a plain text file"
        ) from error


def _key(recipe: Recipe, source: str, vocabulary: str | None) -> str:
    """Names what one source's activations depend on."""
    assert recipe.calibration is not None
    text = {**asdict(recipe.calibration), "file": None}
    text["sha256"] = recipe.calibration.sha256 or text_hash(recipe.calibration)
    models = [asdict(recipe.model(name)) for name in (BASE, source)]
    known = [model["sha256"] or model for model in models]
    facts = json.dumps([text, known, recipe.dtype, vocabulary], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _sequences(calibration: Calibration, models: Models, trust: bool) -> list[torch.Tensor]:
    """The first tokens of the text in sequences, int64 [length]; each starts as the merged model's
    tokenizer starts a text."""
    path = Path(calibration.file)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"calibration: {path}: cannot be read as UTF-8 text: {error}") from error
    found = models.vocabularies
    tokenizer: Any = (
        load_tokenizer(models.base.folder, trust_remote_code=trust)
        if found is None
        else found.tokenizer
    )
    start = tokenizer("").input_ids[:1]
    start = start if start and start[0] == tokenizer.bos_token_id else []
    text = text[: _MOST_CHARACTERS * calibration.tokens]
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    positions = models.base.config.get("max_position_embeddings") or calibration.length
    step = min(calibration.length, positions) - len(start)
    ids = ids[: calibration.tokens]
    if not ids:
        raise UserError(f"calibration: {path}: has no tokens; expected a text")
    if len(ids) < calibration.tokens:
        log.info("%s has %d tokens, fewer than the %d asked", path, len(ids), calibration.tokens)
    return [torch.tensor(start + ids[at : at + step]) for at in range(0, len(ids), step)]


@torch.no_grad()
def _measure(
    model: nn.Module,
    layout: Layout,
    texts: Sequence[torch.Tensor],
    activations: Activations,
    key: str,
    pass_bytes: int,
) -> Mapping[str, Entry]:
    """Keeps the Gram matrix of every distinct input, and the index of which slot has which."""
    layers = _layers(model, layout)
    shared = _shared_inputs(model, layers, texts[0])
    index: dict[str, Entry] = {}
    for batch in _batches(shared, pass_bytes):
        grams = _accumulate(model, [layers[0] for layers in batch], texts)
        names = {each[0].module: each for each in batch}
        activations.keep(key, ((_name(names[m]), gram) for m, gram in grams.items()))
        for each in batch:
            for layer in each:
                index |= {slot: (_name(each), dim) for slot, dim in layer.slots.items()}
    activations.finish(key, index)
    return index


def _name(layers: Sequence[_Layer]) -> str:
    return next(iter(layers[0].slots))


def _layers(model: nn.Module, layout: Layout) -> list[_Layer]:
    """The linear layers whose weights are slots; a tied head is an embedding, and left out."""
    slots: dict[str, list[Slot]] = {}
    tied = set(layout.tied.values())
    for slot in layout.slots.values():
        if slot.parameter not in tied:
            slots.setdefault(slot.parameter, []).append(slot)
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, Conv1D)):
            continue
        by_rows = isinstance(module, nn.Linear)  # [out, in]; Conv1D: [in, out]
        features = module.weight.shape[int(by_rows)]
        stride = 1 if by_rows else module.weight.shape[1]
        dims = {
            slot.name: dim
            for slot in slots.get(f"{name}.weight", ())
            for dim in (1, 0)
            if len(slot.shape) == 2 and (slot.shape[dim], slot.strides[dim]) == (features, stride)
        }
        if dims:
            found.append(_Layer(module=name, features=features, slots=dims))
    return found


def _shared_inputs(
    model: nn.Module, layers: Sequence[_Layer], text: torch.Tensor
) -> list[list[_Layer]]:
    """Layers that read the same tensor, together; those that are never called are left out.

    All inputs of one short run are held, so that one address is one tensor.
    """
    held: list[torch.Tensor] = []
    readers: dict[tuple[object, ...], list[_Layer]] = {}
    calls: dict[str, list[object]] = {layer.module: [] for layer in layers}

    def note(module: str, inputs: torch.Tensor) -> None:
        held.append(inputs)
        calls[module].append((inputs.data_ptr(), inputs.numel(), inputs._version))

    with _watching(model, layers, note):
        _read(model, text)
    for layer in layers:
        if calls[layer.module]:
            readers.setdefault((layer.features, *calls[layer.module]), []).append(layer)
    return list(readers.values())


def _batches(shared: Sequence[list[_Layer]], most: int) -> Iterator[list[list[_Layer]]]:
    """Distinct inputs whose Gram matrices, of float32, fit into `most` bytes; at least one."""
    batch: list[list[_Layer]] = []
    room = most
    for layers in shared:
        size = 4 * layers[0].features ** 2
        if size > room and batch:
            yield batch
            batch, room = [], most
        batch.append(layers)
        room -= size
    if batch:
        yield batch


def _accumulate(
    model: nn.Module, layers: Sequence[_Layer], texts: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Module -> XᵀX [in, in], float32, summed sequence by sequence in the order of the text."""
    grams: dict[str, torch.Tensor] = {}
    sizes = {layer.module: layer.features for layer in layers}

    def add(module: str, inputs: torch.Tensor) -> None:
        rows = inputs.reshape(-1, sizes[module]).float()
        if module not in grams:
            grams[module] = rows.new_zeros(sizes[module], sizes[module])
        grams[module].addmm_(rows.T, rows)

    with _watching(model, layers, add):
        for text in texts:
            _read(model, text)
    for module, gram in grams.items():
        if not gram.isfinite().all():
            raise UserError(
                f"calibration: the inputs of {module} are not finite; expected a text that the "
                "sources can read in the recipe's dtype: try bfloat16 or float32"
            )
    return grams


@contextmanager
def _watching(model: nn.Module, layers: Sequence[_Layer], see: Any) -> Iterator[None]:
    """Calls see(module, inputs) each time that a layer is about to run."""
    modules = dict(model.named_modules())

    def hook(name: str) -> Any:
        return lambda module, inputs: see(name, inputs[0].detach())

    handles = [modules[n].register_forward_pre_hook(hook(n)) for n in (x.module for x in layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _read(model: nn.Module, text: torch.Tensor) -> None:
    model(input_ids=text[None], use_cache=False)


def _announce(layout: Layout, index: Mapping[str, Entry]) -> None:
    """Which matrices no linear layer of its own reads, beside the embeddings."""
    rest = [
        slot.name
        for slot in layout.slots.values()
        if len(slot.shape) == 2 and slot.name not in index and place(slot.name).part != "embeddings"
    ]
    if rest:
        log.warning(
            "%d of %d matrices are no linear layers' weights (fused experts, for one): methods that"
            " need activations average them: %s%s",
            len(rest),
            len(rest) + len(index),
            ", ".join(rest[:3]),
            f" and {len(rest) - 3} more" if len(rest) > 3 else "",
        )

"""Tiny Llamas for merges: a corner of the quickstart family in float32, each entry moved a little.

A corner (the first rows and columns) is as good to merge as the whole, and fast. Moved by integer
arithmetic, so that they are the same everywhere: in bfloat16 many differences would be of equal
size, and which of them a threshold cuts is anybody's choice. The head is one of its own (not tied
to the embeddings), so that every place of a decoder is there.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from evomerge.recipe import Model, Recipe
from tests.vocabularies import TOKENS, write_tokenizer

FAMILY = Path(__file__).parents[2] / "configs" / "quickstart" / "models"
NAMES = ("base", "capital", "dial", "past", "sort7")
_STEP = 1e-3
_WIDTH, _INNER, _VOCABULARY = 32, 64, 100
_ORDER = tuple(range(_VOCABULARY))
OTHERS: dict[str, tuple[str, tuple[int, ...], tuple[str, ...]]] = {
    "chat": ("dial", _ORDER[::-1], ("<call>",)),
    "code": ("past", _ORDER[50:] + _ORDER[:50], ()),
    "agent": ("sort7", _ORDER, ("<call>",)),
}
"""Models with other vocabularies: of which of the family, its tokens' order, further tokens.

All together add one token: the order of several in a union is another in each run of mergekit.
"""

_COPIED = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")
_SIZES = {96: _WIDTH, 256: _INNER, 100: _VOCABULARY}
"""Sizes of the family, and what is kept of them."""


def corner(tensor: torch.Tensor) -> torch.Tensor:
    """The first rows and columns."""
    return tensor[tuple(slice(_SIZES[size]) for size in tensor.shape)]


def moved(tensor: torch.Tensor, key: int) -> torch.Tensor:
    """The tensor in float32, every entry moved by up to ±_STEP, by its position and `key`."""
    position = torch.arange(tensor.numel(), dtype=torch.int64) + key * 1_000_003
    mixed = position * 2654435761 % 2**32
    mixed = (mixed ^ (mixed >> 15)) * 2246822519 % 2**32
    share = (mixed >> 9).double() / 2**22 - 1
    return (tensor.double().flatten() + _STEP * share).float().view_as(tensor)


def make_sources(folder: Path) -> None:
    """Writes one checkpoint folder per name."""
    for number, name in enumerate((*NAMES, *OTHERS)):
        out = folder / name
        out.mkdir(parents=True)
        model, order, added = OTHERS.get(name, (name, _ORDER, ()))
        whole = load_file(FAMILY / model / "model.safetensors")
        tensors = {tensor: corner(value) for tensor, value in whole.items()}
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors = {
            tensor: moved(tensors[tensor], 100 * number + place)
            for place, tensor in enumerate(sorted(tensors))
        }
        for place, rows in enumerate(("model.embed_tokens.weight", "lm_head.weight")):
            more = moved(torch.zeros(len(added), _WIDTH), 1000 * number + place)
            tensors[rows] = torch.cat([tensors[rows][list(order)], more])
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((FAMILY / model / "config.json").read_text())
        config |= {"tie_word_embeddings": False, "dtype": "float32"}
        config |= {"hidden_size": _WIDTH, "intermediate_size": _INNER, "head_dim": _WIDTH // 4}
        config["vocab_size"] = _VOCABULARY + len(added)
        (out / "config.json").write_text(json.dumps(config, indent=2))
        for file in _COPIED:
            shutil.copyfile(FAMILY / model / file, out / file)
        if name in OTHERS:
            write_tokenizer(out, [TOKENS[number] for number in order], added)


def located(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe whose models lie in `folder`."""

    def within(model: Model) -> Model:
        return replace(model, path=str(folder / model.path))

    models = {name: within(model) for name, model in recipe.sources.items()}
    return replace(recipe, base=within(recipe.base), sources=models)


def without_folder(text: str, folder: Path) -> str:
    """The text with models named relative to `folder`."""
    return text.replace(f"{folder}/", "")

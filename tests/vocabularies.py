"""The quickstart's models with other vocabularies: the same weights under other tokens' numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FAMILY = Path(__file__).parent.parent / "configs" / "quickstart" / "models"
TOKENS: tuple[str, ...] = tuple(
    json.loads((FAMILY / "base" / "tokenizer.json").read_text())["model"]["vocab"]
)
"""The family's 100 tokens in the order of their numbers; the first four are special."""
EMBEDDINGS = "model.embed_tokens.weight"


def write_tokenizer(folder: Path, tokens: Sequence[str], added: Sequence[str] = ()) -> None:
    """The family's tokenizer with these tokens, then `added` ones, which are special."""
    numbers = {token: number for number, token in enumerate(tokens)}
    more = {token: len(tokens) + place for place, token in enumerate(added)}
    content: dict[str, Any] = json.loads((FAMILY / "base" / "tokenizer.json").read_text())
    content["model"]["vocab"] = numbers
    flags = content["added_tokens"][0]
    specials = [token["content"] for token in content["added_tokens"]]
    content["added_tokens"] = [
        {**flags, "id": number, "content": token}
        for token, number in ({t: numbers[t] for t in specials if t in numbers} | more).items()
    ]
    content["post_processor"]["special_tokens"]["<s>"]["ids"] = [numbers["<s>"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = (FAMILY / "base" / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(settings)


def variant(
    name: str,
    folder: Path,
    tokens: Sequence[str] = TOKENS,
    added: Sequence[str] = (),
    padding: torch.Tensor | None = None,
    untied: bool = False,
) -> Path:
    """Writes a model of the family with another vocabulary to `folder` and returns it.

    Each token keeps its row; new tokens, after `added`, get random rows that depend on the name of
    the model. padding: further rows. untied: with a head of its own, twice the embeddings.
    """
    folder.mkdir(parents=True)
    tensors = load_file(FAMILY / name / "model.safetensors")
    old = tensors[EMBEDDINGS]
    generator = torch.Generator().manual_seed(sum(name.encode()))
    fresh = torch.empty(len(tokens) + len(added), old.shape[1]).normal_(generator=generator)
    rows = [
        old[TOKENS.index(token)] if token in TOKENS else fresh[place].to(old.dtype)
        for place, token in enumerate((*tokens, *added))
    ]
    pad = old[:0] if padding is None else padding.to(old.dtype)
    tensors[EMBEDDINGS] = torch.cat([torch.stack(rows), pad])
    if untied:
        tensors["lm_head.weight"] = 2 * tensors[EMBEDDINGS]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder, tokens, added)
    ids = {f"{kind}_token_id": tokens.index(f"<{mark}>") for kind, mark in IDS.items()}
    for file in ("config.json", "generation_config.json"):
        content = json.loads((FAMILY / name / file).read_text()) | ids
        if file == "config.json":
            content |= {"vocab_size": len(tensors[EMBEDDINGS]), "tie_word_embeddings": not untied}
        (folder / file).write_text(json.dumps(content))
    return folder


IDS = {"bos": "s", "eos": "/s", "pad": "pad"}

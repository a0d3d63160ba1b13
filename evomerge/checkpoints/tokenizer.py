"""The tokenizers of a base and its sources: loaded, and compared token by token."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from evomerge.errors import UserError

FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
)
"""Patterns of the files that make a tokenizer, chat template included."""


def has_tokenizer(folder: Path) -> bool:
    """Whether a model folder brings a tokenizer along."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    return any((folder / name).exists() for name in names)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; UserError if it has none that transformers can load."""
    if not has_tokenizer(folder):
        raise UserError(
            f"{folder}: has no tokenizer; expected tokenizer.json or tokenizer.model beside the "
            "weights: copy them from the model that it was fine-tuned from"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # the tokenizers library raises bare Exceptions for bad files
        raise UserError(
            f"{folder}: transformers cannot load its tokenizer: {type(error).__name__}: {error}"
        ) from error
    return tokenizer


def check_same_vocabulary(
    name: str, source: PreTrainedTokenizerBase, base: PreTrainedTokenizerBase
) -> None:
    """UserError that names the first token whose number differs from the base's."""
    ours, theirs = source.get_vocab(), base.get_vocab()
    if ours == theirs:
        return
    token = min(
        (t for t in {**ours, **theirs} if ours.get(t) != theirs.get(t)),
        key=lambda t: ours.get(t, theirs.get(t, 0)),
    )
    raise UserError(
        f"{name}: another vocabulary than the base's: token {token!r} has number "
        f"{ours.get(token, 'none')} here, {theirs.get(token, 'none')} there; only models with the "
        "base's vocabulary can be merged"
    )

"""The tokenizers of a base and its sources, and that of the merged model."""

import filecmp
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from evomerge.checkpoints.vocabulary import (
    Difference,
    Tokens,
    difference,
    moved_ids,
    some,
    tokens_of,
)
from evomerge.errors import UserError, did_you_mean
from evomerge.recipe import BASE, UNION

_SAID = 1000  # characters of what another library says

log = logging.getLogger(__name__)

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
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except BaseException as error:  # the tokenizers library raises bare ones, its panics above all
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{folder}: transformers cannot load its tokenizer: {type(error).__name__}: "
            f"{str(error)[:_SAID]}; expected the tokenizer files of the model that it was "
            "fine-tuned from"
        ) from error
    return tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabularies:
    """The vocabularies of the models of one merge, and that of the merged model."""

    wanted: str
    """`base`, `union`, or the name of a source; `base` also where a union adds nothing."""
    tokens: Mapping[str, Tokens]
    """By model. A source without tokenizer is taken to have the base's tokens."""
    own: frozenset[str]
    """The models that bring a tokenizer along."""
    result: Tokens
    tokenizer: PreTrainedTokenizerBase
    """Of the merged model."""
    folders: Mapping[str, Path]
    """By model, with or without tokenizer."""

    def differences(self) -> dict[str, Difference]:
        """How each source's vocabulary differs from the base's; those that do not are left out."""
        base = self.tokens[BASE]
        found = {n: difference(own, base) for n, own in self.tokens.items() if own != base}
        return {name: each for name, each in found.items() if each}

    def moved_ids(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The base's `*_token_id` settings that have other numbers in the merged model."""
        known = {key: getattr(self.tokenizer, key, None) for key in settings if key in _IDS}
        return moved_ids(settings, self.tokens[BASE], self.result, known)

    def save(self, folder: Path) -> None:
        """Writes the merged model's tokenizer into its folder."""
        if self.wanted == UNION:
            self.tokenizer.save_pretrained(folder)
        else:
            copy_tokenizer(self.folders[self.wanted], folder)


_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id")


def read_vocabularies(
    folders: Mapping[str, Path], wanted: str = BASE, *, trust_remote_code: bool = False
) -> Vocabularies | None:
    """The vocabularies of the base and its sources; None where the base has no tokenizer.

    folders: by model, the base among them. UserError where a tokenizer cannot be loaded, or the
    wanted vocabulary cannot be made.
    """
    if wanted not in (UNION, *folders):
        raise UserError(f"vocabulary: {wanted!r}: {did_you_mean(wanted, [UNION, *folders])}")
    for name in () if wanted == BASE else {BASE, wanted} - {UNION}:
        if not has_tokenizer(folders[name]):
            raise UserError(
                f"vocabulary: {wanted!r}: {name} ({folders[name]}) has no tokenizer; expected "
                "tokenizer.json or tokenizer.model beside the weights, or `vocabulary: base`"
            )
    if not has_tokenizer(folders[BASE]):
        return None
    loaded = _loaded(folders, trust_remote_code)
    tokens = {name: tokens_of(tokenizer.get_vocab()) for name, tokenizer in loaded.items()}
    if wanted == UNION and all(own == tokens[BASE] for own in tokens.values()):
        wanted = BASE
    if wanted == UNION:
        start = load_tokenizer(folders[BASE], trust_remote_code=trust_remote_code)
        tokenizer = _union(start, {name: t for name, t in loaded.items() if name != BASE})
    else:
        tokenizer = loaded[wanted]
    found = Vocabularies(
        wanted=wanted,
        tokens={name: tokens.get(name, tokens[BASE]) for name in folders},
        own=frozenset(loaded),
        result=tokens_of(tokenizer.get_vocab()),
        tokenizer=tokenizer,
        folders=folders,
    )
    for name, each in found.differences().items():
        log.info("%s: its vocabulary %s; the merged model has: %s", name, each.sentence(), wanted)
    return found


def _loaded(folders: Mapping[str, Path], trust: bool) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizers by model; those of equal files are loaded once."""
    loaded = {BASE: load_tokenizer(folders[BASE], trust_remote_code=trust)}
    for name, folder in folders.items():
        if not has_tokenizer(folder):
            log.warning("source %s has no tokenizer: taken to use the base's", name)
        elif name != BASE:
            same = _same_files(folder, folders[BASE])
            loaded[name] = loaded[BASE] if same else load_tokenizer(folder, trust_remote_code=trust)
    return loaded


def _union(
    base: PreTrainedTokenizerBase, sources: Mapping[str, PreTrainedTokenizerBase]
) -> PreTrainedTokenizerBase:
    """The base's tokenizer (changed in place), with the tokens that sources added to theirs."""
    before = base.get_vocab()
    for name, source in sources.items():
        known = base.get_vocab()
        new = [t for t in tokens_of(source.get_vocab()) if isinstance(t, str) and t not in known]
        added = {str(token): token for token in source.added_tokens_decoder.values()}
        if inner := [token for token in new if token not in added]:
            raise UserError(
                f"vocabulary: union: {name} has {some(inner)} that were not added to the base's "
                "tokenizer but are part of the model of its own, by which it cuts words; the two "
                f"cannot be joined: take one of them, `vocabulary: {name}` or `vocabulary: base`"
            )
        base.add_tokens([added[token] for token in new])
    after = base.get_vocab()
    lost = [token for token, number in before.items() if after.get(token) != number]
    if lost or len(set(after.values())) - len(set(before.values())) != len(after) - len(before):
        raise UserError(
            "vocabulary: union: the base's tokenizer gives an added token the number of another; "
            "expected free numbers at its end: take `vocabulary: base` or that of a source"
        )
    return base


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies the files that make a tokenizer, chat template included.

    UserError for a link out of the folder: what it points at would be published with the result.
    """
    check_inside(source, _files(source))
    for path in _files(source):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, folder / path.name)


def check_inside(folder: Path, paths: Sequence[Path]) -> None:
    """UserError where a file, or one in a folder, is a link that leads out of the model folder; in
    the hub's cache, files are links to its blobs."""
    real = folder.resolve()
    roots = [real, real.parent.parent / "blobs"] if real.parent.name == "snapshots" else [real]
    for path in [each for one in paths for each in (one, *one.rglob("*"))]:
        if not any(path.resolve().is_relative_to(root) for root in roots):
            raise UserError(
                f"{path}: is a link to {path.resolve()}, outside the model folder, and would be "
                "copied into the result; expected a file: copy it there yourself if you mean it"
            )


def _files(folder: Path) -> list[Path]:
    return sorted({path for pattern in FILES for path in folder.glob(pattern)})


def _same_files(first: Path, second: Path) -> bool:
    """Whether two folders' tokenizers are the same file by file; the chat template may differ."""
    names = [
        {path.name for path in _files(folder) if not path.name.startswith("chat_template")}
        for folder in (first, second)
    ]
    return names[0] == names[1] and all(
        (first / name).is_file() and filecmp.cmp(first / name, second / name, shallow=False)
        for name in names[0]
    )

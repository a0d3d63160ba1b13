"""The check for stop texts against decoding everything, on random tokens."""

import random
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evomerge.scoring.stopping import StopCheck


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and some of more: letters outside ASCII are two or three tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("Q", ":"), ("Ġ", "Q"), ("a", "Ċ")]
    tokens = [*alphabet, *("".join(merge) for merge in merges)]
    raw = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As SentencePiece models decode: spaces as ▁, the first one dropped, bytes for the rest."""
    pieces = ["<unk>", "▁", "▁Q", "Q", ":", "a", "▁a", *(f"<0x{byte:02X}>" for byte in range(256))]
    raw = Tokenizer(
        models.BPE(
            {piece: place for place, piece in enumerate(pieces)},
            [("▁", "Q"), ("▁", "a")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


@pytest.mark.parametrize("make", [bytes_tokenizer, fallback_tokenizer])
@pytest.mark.parametrize("stops", [["\n"], ["\n\n", "Q:"], ["é", ""], [" "], ["a Q", "€"]])
def test_equal_to_decoding_everything(make: Any, stops: list[str]) -> None:
    tokenizer = make()
    check = StopCheck(tokenizer, stops)
    window = 2 + max(len(tokenizer.encode(s, add_special_tokens=False)) for s in stops if s)
    likely = [*range(len(tokenizer)), *tokenizer.encode("é€a Q:\n\n" * 20)]
    numbers = random.Random(0)
    answers = [[numbers.choice(likely) for _ in range(1 + n % 9)] for n in range(2000)]
    answers += [tokenizer.encode(f"a{stop}") for stop in stops]
    texts = tokenizer.batch_decode([answer[-window:] for answer in answers])
    expected = [any(stop in text for stop in stops if stop) for text in texts]
    assert check(answers) == expected
    assert len(set(expected)) == 2

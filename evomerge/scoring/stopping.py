"""Whether a text that ends answers stands at the end of some, given as tokens."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_BROKEN = "\N{REPLACEMENT CHARACTER}"  # in the text of tokens that hold part of a character


class StopCheck:
    """A function of answers so far (each at least one token) that says which of them have ended.

    As in lm-eval, it looks for the stop texts in two tokens more than they have, because a model
    may spell them in other tokens. Where no token among these has a character that every stop
    text needs one of, there is nothing to decode, which is most of the time.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        encoded = [tokenizer.encode(stop, add_special_tokens=False) for stop in self._stops]
        self._window = 2 + max(map(len, encoded))
        # Decoding may drop spaces from between tokens, and a tidy tokenizer also other characters.
        tidy = getattr(tokenizer, "clean_up_tokenization_spaces", False)
        self._needed = None if tidy else _needed(self._stops)
        self._suspects: dict[int, bool] = {}  # by token

    def __call__(self, answers: Sequence[list[int]]) -> list[bool]:
        ends = [answer[-self._window :] for answer in answers]
        suspects = [any(map(self._is_suspect, end)) for end in ends]
        texts = iter(
            self._tokenizer.batch_decode(
                [end for end, suspect in zip(ends, suspects, strict=True) if suspect]
            )
            if any(suspects)
            else ()
        )
        found = []
        for suspect in suspects:
            text = next(texts) if suspect else ""
            found.append(any(stop in text for stop in self._stops))
        return found

    def _is_suspect(self, token: int) -> bool:
        """Whether the token may be part of a stop text."""
        if self._needed is None:
            return True
        suspect = self._suspects.get(token)
        if suspect is None:
            text = str(self._tokenizer.decode([token]))
            suspect = _BROKEN in text or not self._needed.isdisjoint(text)
            self._suspects[token] = suspect
        return suspect


def _needed(stops: Sequence[str]) -> frozenset[str] | None:
    """One character of each stop text, not a space; None where one has only spaces."""
    needed = set()
    for stop in stops:
        characters = stop.replace(" ", "")
        if not characters:
            return None
        needed.add(characters[-1])
    return frozenset(needed)

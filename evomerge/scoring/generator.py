"""What the language model needs to know of a program that generates in the live model's place."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model says after a prompt."""

    tokens: tuple[int, ...]
    cut_off: bool
    """Whether it ended only because it had as many tokens as it may have."""


class Generator(Protocol):
    """Decodes greedily with the weights of the live model."""

    def weights_changed(self) -> None:
        """The live model has other weights from now on."""
        ...

    def generate(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Sequence[str],
        end_tokens: AbstractSet[int],
    ) -> list[Answer]:
        """To each prompt (token ids), the most probable next tokens.

        An answer ends with, or before, the first of `end_tokens`, at the token that completes
        one of the stop strings, or after max_new_tokens. Where it ends with a stop string or an
        end token, the caller cuts that off.
        """
        ...

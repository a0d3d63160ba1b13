"""One language model for all scorers of a search."""

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evomerge.errors import UserError
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.generator import Generator
from evomerge.scoring.language_model import LanguageModel


class LanguageModels:
    """The language model around the live model, made when it is first asked for.

    Scorers share it, so that they have one budget, one memo of tokens and one generator.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        budget: BatchBudget,
        max_length: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._budget = budget
        self._max_length = max_length
        self._generator = generator
        self._made: LanguageModel | None = None

    def start(self, model: nn.Module) -> LanguageModel:
        """That of this model, for the weights that it holds now; UserError where it is none of
        transformers' models."""
        if not isinstance(model, PreTrainedModel):
            raise UserError(f"the model is a {type(model).__name__}; expected one of transformers")
        if self._made is None or self._made.model is not model:
            self._made = LanguageModel(
                model,
                self._tokenizer,
                budget=self._budget,
                max_length=self._max_length,
                generator=self._generator,
            )
        self._made.weights_changed()
        return self._made

"""Texts as tokens, exactly as lm-eval's HFLM makes them, which is asked for each of them once."""

from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evomerge.errors import UserError
from evomerge.scoring.kept_tokens import TokenMemory
from evomerge.scoring.likelihood import Pair


class Encoder:
    """What a model reads for the texts of requests. Nothing of it depends on the weights."""

    def __init__(self, stock: HFLM) -> None:
        self._stock = stock
        self.memory = TokenMemory()
        self.max_length: int = stock.max_length
        """Tokens of context and answer together."""

    @property
    def settings(self) -> str:
        """All that decides, beside the tokenizer, which tokens a text becomes."""
        stock = self._stock
        return repr((stock.add_bos_token, stock.prefix_token_id, stock.backend, self.max_length))

    def count(self, *request: str) -> int:
        """Number of tokens of a (context, continuation)'s continuation, or of a text alone."""
        return sum(len(continuation) for _, continuation in self.pairs(*request))

    def pairs(self, *request: str) -> tuple[Pair, ...]:
        """A (context, continuation) as tokens, or the windows of a text alone."""
        return tuple(self.windows(*request)) if len(request) == 1 else (self.pair(*request),)

    def pair(self, context: str, continuation: str) -> Pair:
        """Tokens of both; UserError where the continuation has none or too many."""
        known = self.memory.pairs
        if (found := known.get((context, continuation))) is not None:
            return found
        pair: Pair
        if context:
            pair = self._stock._encode_pair(context, continuation)
        else:
            tokens = self._stock.tok_encode(continuation, add_special_tokens=False)
            prefix = self._stock.prefix_token_id
            # As in lm-eval: the beginning-of-text token is the context, unless it is there already.
            pair = (tokens[:1], tokens[1:]) if tokens[:1] == [prefix] else ([prefix], tokens)
        if not 0 < len(pair[1]) <= self.max_length:
            raise UserError(
                f"the answer {continuation[:60]!r} has {len(pair[1])} tokens; expected 1 to "
                f"{self.max_length} (the model's maximum length); change the task's choices"
            )
        known[context, continuation] = pair
        return pair

    def windows(self, text: str) -> list[Pair]:
        """A whole text in windows of at most max_length tokens, each after one token of context."""
        known = self.memory.windows
        if text not in known:
            windows = get_rolling_token_windows(
                token_list=self._stock.tok_encode(text),
                prefix_token=self._stock.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            known[text] = [make_disjoint_window(window) for window in windows]
        return known[text]

    def prompt(self, text: str, max_new_tokens: int) -> list[int]:
        """The last tokens of a prompt, as many as leave room for the answer; UserError for none."""
        known, key = self.memory.prompts, (text, max_new_tokens)
        if key not in known:
            room = self.max_length - max_new_tokens
            if room <= 0:
                raise UserError(
                    f"max_gen_toks is {max_new_tokens}, but the model reads at most "
                    f"{self.max_length} tokens, prompt and answer together; lower max_gen_toks "
                    "in the task's generation_kwargs"
                )
            tokens, _ = self._stock.tok_batch_encode([text], left_truncate_len=room)
            known[key] = tokens[0].tolist()
        return known[key]

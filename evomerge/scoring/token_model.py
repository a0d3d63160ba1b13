"""A live model that is asked in tokens: what is asked again is planned once, what is shared is read
once per candidate, and where memory runs out, less is done at a time.
"""

import logging
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from evomerge.errors import CandidateError
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.forward_pass import ForwardPass, prepare_pass, run_pass
from evomerge.scoring.generator import Answer
from evomerge.scoring.greedy import decode
from evomerge.scoring.likelihood import Pair, plan_passes
from evomerge.scoring.logits import input_device, sliding_window, why_nothing_is_shared
from evomerge.scoring.prefixes import choose_trunks
from evomerge.scoring.rows import Prompt
from evomerge.scoring.trunks import Trunks

_LOG = logging.getLogger(__name__)
_PLANS = 256  # kept; a search asks for far fewer different sets of documents
T = TypeVar("T")


class TokenModel:
    """Log-likelihoods and greedy answers of one model, whose weights may change between calls.

    budget: how much a forward pass takes; found here where it is not known yet. max_length: tokens
    of context and answer together. Pairs and prompts are told apart by identity: the caller keeps
    the lists that it asks with, and never changes them.
    """

    def __init__(self, model: PreTrainedModel, budget: BatchBudget, max_length: int) -> None:
        budget.settle(model)
        self._model = model
        self._budget = budget
        self._max_length = max_length
        self._alone = why_nothing_is_shared(model)
        self._window = sliding_window(model)
        self._plans: dict[tuple[int, ...], list[ForwardPass]] = {}
        self._prompts: dict[tuple[int, ...], list[Prompt]] = {}
        self._plan_anew()
        self.weights_changed()

    def weights_changed(self) -> None:
        """Forgets what depends on the weights, and begins to count seconds anew."""
        self.seconds = 0.0
        """Spent in forward passes and decoding since the weights changed."""
        self._trunks = self._no_trunks()
        self._shortages: list[str] = []

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was not done as usual since the weights changed, in words."""
        whole = [] if self._alone is None else [f"no beginnings are shared: {self._alone}"]
        return (*whole, *self._shortages)

    def log_likelihoods(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the log-probability in nats, and whether the
        continuation is what greedy decoding would say.

        Raises CandidateError where it is NaN or memory runs out.
        """
        if not pairs:
            return []
        self._planned(pairs)
        return self.within_memory(lambda: self._run(self._planned(pairs), len(pairs)))

    def answers(
        self,
        prompts: Sequence[list[int]],
        *,
        max_new_tokens: int,
        end_tokens: AbstractSet[int],
        stopped: Callable[[list[list[int]]], list[bool]],
    ) -> list[Answer]:
        """The most probable next tokens of each prompt; as `decode` says, and raises."""
        if not prompts:
            return []
        shared = self._with_trunks(prompts)
        longest = max(map(len, prompts)) + max_new_tokens
        return self.within_memory(
            lambda: decode(
                self._model,
                shared,
                self._trunks,
                slots=self._budget.slots(longest),
                tokens=self._budget.tokens,
                max_new_tokens=max_new_tokens,
                end_tokens=end_tokens,
                stopped=stopped,
            )
        )

    def within_memory(self, work: Callable[[], T]) -> T:
        """What `work` returns, done again with a smaller budget where memory ran out; its seconds
        count. Raises CandidateError where the budget cannot be smaller."""
        while True:
            start = time.perf_counter()
            try:
                return work()
            except torch.OutOfMemoryError as error:
                self._take_less(error)
            finally:
                self.seconds += time.perf_counter() - start

    def _take_less(self, error: torch.OutOfMemoryError) -> None:
        before = self._budget.tokens
        if not self._budget.halve():
            raise CandidateError(
                f"out of memory with {before} tokens in a forward pass on "
                f"{input_device(self._model)}: {error}"
            ) from error
        remark = (
            f"out of memory with {before} tokens in a forward pass: {self._budget.tokens} from here"
        )
        _LOG.warning("%s", remark)
        self._shortages.append(remark)
        self._plan_anew()
        self._trunks = self._no_trunks()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _plan_anew(self) -> None:
        """Plans made before do not fit the budget any more."""
        vocabulary: int = self._model.config.get_text_config().vocab_size
        self.limits = self._budget.limits(vocabulary, self._window)
        """Of a forward pass."""
        self._plans.clear()

    def _no_trunks(self) -> Trunks:
        return Trunks(self._model, tokens=self.limits.tokens, held=self.limits.held)

    def _planned(self, pairs: Sequence[Pair]) -> list[ForwardPass]:
        """The passes over these pairs, made at the first call."""
        key = tuple(map(id, pairs))
        if key not in self._plans:
            share = self._alone is None
            plan = plan_passes(pairs, max_length=self._max_length, limits=self.limits, share=share)
            device = input_device(self._model)
            if len(self._plans) == _PLANS:
                self._plans.clear()
            self._plans[key] = [prepare_pass(groups, pairs, device) for groups in plan]
        return self._plans[key]

    def _run(self, passes: Sequence[ForwardPass], count: int) -> list[tuple[float, bool]]:
        sums, hits = np.empty(count), np.empty(count, dtype=np.bool_)
        trunks = [trunk for batch in passes for trunk in batch.trunks if trunk]
        used = 0
        for batch in passes:
            wanted = [trunk for trunk in batch.trunks if trunk]
            used += len(wanted)
            self._trunks.read(wanted, trunks[used:])
            numbers = list(batch.numbers)
            sums[numbers], hits[numbers] = run_pass(self._model, batch, self._trunks)
        return list(zip(sums.tolist(), hits.tolist(), strict=True))

    def _with_trunks(self, prompts: Sequence[list[int]]) -> list[Prompt]:
        """The prompts and what they share, found at the first call."""
        key = tuple(map(id, prompts))
        if key not in self._prompts:
            texts = [tuple(prompt) for prompt in prompts]
            lengths = [0] * len(texts)
            # Sliding windows count padding between a trunk and what follows it.
            seen = self._window is None or 2 * max(map(len, texts)) < self._window
            if self._alone is None and seen:
                lengths = choose_trunks([text[:-1] for text in texts])
            if len(self._prompts) == _PLANS:
                self._prompts.clear()
            self._prompts[key] = [
                Prompt(tokens=text, trunk=length)
                for text, length in zip(texts, lengths, strict=True)
            ]
        return self._prompts[key]

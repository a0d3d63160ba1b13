"""A live model as lm-eval sees it, without the work that lm-eval does anew for every candidate.

Texts become tokens exactly as in lm-eval's HFLM, which is asked for each of them once. Nothing
that depends on the weights is kept from one call to the next.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evomerge.errors import CandidateError, UserError
from evomerge.scoring.answers import Generated
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.forward_pass import ForwardPass, prepare_pass, run_pass
from evomerge.scoring.generator import Answer, Generator
from evomerge.scoring.greedy import decode, decodes_greedily
from evomerge.scoring.kept_tokens import TokenMemory
from evomerge.scoring.likelihood import Pair, plan_passes
from evomerge.scoring.logits import input_device, sliding_window, why_nothing_is_shared
from evomerge.scoring.prefixes import choose_trunks
from evomerge.scoring.rows import Prompt
from evomerge.scoring.stopping import StopCheck
from evomerge.scoring.trunks import Trunks

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
_SAMPLING_SEED = 1234  # the torch seed of lm-eval's simple_evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decoding:
    """How a greedy answer ends, and where it is cut."""

    until: tuple[str, ...]
    max_new_tokens: int


class LanguageModel:
    """Log-likelihoods and answers of one live model, whose weights may change between calls.

    Build it once per model: texts are remembered as tokens, and plans of what is asked together.
    budget: how much a forward pass takes. max_length: tokens of context and answer together; None:
    what the model's config says. generator: what decodes greedily; None: the live model itself.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        budget: BatchBudget,
        max_length: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        if model.config.is_encoder_decoder:
            raise UserError(
                f"{type(model).__name__} is an encoder-decoder model; expected a decoder-only "
                "language model; score it with lm_eval itself"
            )
        self.model = model
        self._tokenizer = tokenizer
        self._budget = budget
        self._generator = generator
        budget.settle(model)
        with _without_warnings("lm_eval.models.huggingface"):
            # The stock model warns that a live model ignores arguments which are not given here.
            self._stock = HFLM(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=budget.texts,
                max_length=max_length,
                softmax_dtype="float32",
            )
        self._stock._device = input_device(model)
        self._max_length: int = self._stock.max_length
        self._plans: dict[tuple[int, ...], list[ForwardPass]] = {}
        self._shared_prompts: dict[tuple[int, ...], list[Prompt]] = {}
        self.memory = TokenMemory()
        self._pairs, self._windows = self.memory.pairs, self.memory.windows
        self._prompts = self.memory.prompts
        self._told = False
        self.seconds = 0.0
        """Spent in forward passes and decoding since the weights changed."""
        self._alone = why_nothing_is_shared(model)
        self._share = self._alone is None
        self._window = sliding_window(model)
        self._plan_anew()
        self.weights_changed()

    def weights_changed(self) -> None:
        """Forgets what depends on the weights, and begins to count seconds anew."""
        self.seconds = 0.0
        self._trunks = Trunks(self.model, tokens=self._limits.tokens, held=self._limits.held)
        self._exceptions: list[str] = []
        if self._generator is not None:
            self._generator.weights_changed()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was not done as usual since the weights changed, in words."""
        whole = [] if self._alone is None else [f"no beginnings are shared: {self._alone}"]
        return (*whole, *self._exceptions)

    def _plan_anew(self) -> None:
        """Plans made before do not fit the budget any more."""
        vocabulary: int = self.model.config.get_text_config().vocab_size
        self._limits = self._budget.limits(vocabulary, self._window)
        self._stock.batch_size_per_gpu = self._budget.texts
        self._plans.clear()

    def _take_less(self, error: torch.OutOfMemoryError) -> None:
        """Halves the budget; the candidate fails where it cannot be less."""
        before = self._budget.tokens
        if not self._budget.halve():
            raise CandidateError(
                f"out of memory with {before} tokens in a forward pass on "
                f"{input_device(self.model)}: {error}"
            ) from error
        remark = (
            f"out of memory with {before} tokens in a forward pass: {self._budget.tokens} from here"
        )
        _LOG.warning("%s", remark)
        self._plan_anew()
        self._trunks = Trunks(self.model, tokens=self._limits.tokens, held=self._limits.held)
        self._exceptions.append(remark)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def count_tokens(self, *request: str) -> int:
        """Number of tokens of a (context, continuation)'s continuation, or of a text alone."""
        if len(request) == 1:
            return sum(len(continuation) for _, continuation in self._encode_windows(request[0]))
        return len(self._encode_pair(*request)[1])

    @torch.no_grad()
    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the log-probability in nats, and whether the
        continuation is what greedy decoding would say.

        Raises CandidateError where it is NaN or memory runs out, UserError where a continuation
        has no tokens or more than the model can read.
        """
        return self._token_log_likelihoods([self._encode_pair(*pair) for pair in pairs])

    @torch.no_grad()
    def rolling_log_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """Log-probability of each whole text in nats, in windows of at most max_length tokens."""
        windows = [self._encode_windows(text) for text in texts]
        scores = iter(self._token_log_likelihoods([pair for pairs in windows for pair in pairs]))
        return [sum(next(scores)[0] for _ in pairs) for pairs in windows]

    @torch.no_grad()
    def generate(self, prompts: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Generated]:
        """The answer to each (prompt, generation settings as lm-eval's tasks write them).

        Greedy decoding is run here; whatever else the settings ask for, by lm-eval's own HFLM,
        from the same random seed at each call.
        """
        answers: dict[int, Generated] = {}
        groups: dict[Hashable, list[int]] = {}
        for place, (_, settings) in enumerate(prompts):
            groups.setdefault(repr(sorted(settings.items())), []).append(place)
        for places in groups.values():
            texts, settings = [prompts[place][0] for place in places], prompts[places[0]][1]
            decoding = self._decoding(settings)
            found = (
                self._generate_stock(texts, settings)
                if decoding is None
                else self._generate_greedily(texts, decoding)
            )
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return [answers[place] for place in range(len(prompts))]

    @property
    def encoding(self) -> str:
        """All that decides, beside the tokenizer, which tokens a text becomes."""
        stock = self._stock
        return repr((stock.add_bos_token, stock.prefix_token_id, stock.backend, self._max_length))

    # --- tokens -------------------------------------------------------------------------------

    def _encode_pair(self, context: str, continuation: str) -> Pair:
        pair = self._pairs.get((context, continuation))
        if pair is not None:
            return pair
        if context:
            pair = self._stock._encode_pair(context, continuation)
        else:
            tokens = self._stock.tok_encode(continuation, add_special_tokens=False)
            prefix = self._stock.prefix_token_id
            # As in lm-eval: the beginning-of-text token is the context, unless it is there already.
            pair = (tokens[:1], tokens[1:]) if tokens[:1] == [prefix] else ([prefix], tokens)
        if not 0 < len(pair[1]) <= self._max_length:
            raise UserError(
                f"the answer {continuation[:60]!r} has {len(pair[1])} tokens; expected 1 to "
                f"{self._max_length} (the model's maximum length); change the task's choices"
            )
        self._pairs[context, continuation] = pair
        return pair

    def _encode_windows(self, text: str) -> list[Pair]:
        if text not in self._windows:
            windows = get_rolling_token_windows(
                token_list=self._stock.tok_encode(text),
                prefix_token=self._stock.prefix_token_id,
                max_seq_len=self._max_length,
                context_len=1,
            )
            self._windows[text] = [make_disjoint_window(window) for window in windows]
        return self._windows[text]

    def _encode_prompt(self, text: str, max_new_tokens: int) -> list[int]:
        key = (text, max_new_tokens)
        if key not in self._prompts:
            room = self._max_length - max_new_tokens
            if room <= 0:
                raise UserError(
                    f"max_gen_toks is {max_new_tokens}, but the model reads at most "
                    f"{self._max_length} tokens, prompt and answer together; lower max_gen_toks "
                    "in the task's generation_kwargs"
                )
            tokens, _ = self._stock.tok_batch_encode([text], left_truncate_len=room)
            self._prompts[key] = tokens[0].tolist()
        return self._prompts[key]

    # --- log-likelihoods ----------------------------------------------------------------------

    def _token_log_likelihoods(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        self._planned(pairs)
        return self._within_memory(lambda: self._run(self._planned(pairs), len(pairs)))

    def _planned(self, pairs: Sequence[Pair]) -> list[ForwardPass]:
        """The passes over these pairs, made at the first call; the memo keeps the pairs alive."""
        key = tuple(map(id, pairs))
        if key not in self._plans:
            plan = plan_passes(
                pairs, max_length=self._max_length, limits=self._limits, share=self._share
            )
            device = input_device(self.model)
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
            sums[numbers], hits[numbers] = run_pass(self.model, batch, self._trunks)
        return list(zip(sums.tolist(), hits.tolist(), strict=True))

    # --- answers ------------------------------------------------------------------------------

    def _decoding(self, settings: Mapping[str, Any]) -> _Decoding | None:
        """None where the settings, or the model's own, ask for more than greedy decoding."""
        rest = dict(normalize_gen_kwargs(dict(settings), self._stock.max_gen_toks))
        until, max_new_tokens = rest.pop("until"), rest.pop("max_gen_toks")
        greedy = rest.pop("do_sample") is False and not rest.pop("temperature", 0.0)
        if rest or not greedy or not decodes_greedily(self.model):
            return None
        end = self._stock.tok_decode(self._stock.eot_token_id, skip_special_tokens=False)
        stops = tuple(handle_stop_sequences(list(until), eos=end))
        return _Decoding(until=stops, max_new_tokens=max_new_tokens)

    def _generate_greedily(self, texts: Sequence[str], decoding: _Decoding) -> list[Generated]:
        prompts = [self._encode_prompt(text, decoding.max_new_tokens) for text in texts]
        if self._generator is None:
            work = partial(self._decode, self._with_trunks(prompts), decoding)
        else:
            work = partial(
                self._generator.generate,
                self.model,
                prompts,
                max_new_tokens=decoding.max_new_tokens,
                stop=decoding.until,
                end_tokens=self._end_tokens(),
            )
        answers = self._within_memory(work)
        until, limit = list(decoding.until), decoding.max_new_tokens
        texts = [self._stock.tok_decode(answer.tokens) for answer in answers]
        return [
            Generated(
                text=postprocess_generated_text(text, until, think_end_token=None),
                cut_off=answer.cut_off,
                limit=limit,
            )
            for text, answer in zip(texts, answers, strict=True)
        ]

    def _with_trunks(self, prompts: Sequence[list[int]]) -> list[Prompt]:
        """The prompts with what they share, found at the first call; the memo keeps them alive."""
        key = tuple(map(id, prompts))
        if key not in self._shared_prompts:
            texts = [tuple(prompt) for prompt in prompts]
            lengths = [0] * len(texts)
            # Sliding windows count padding between a trunk and what follows it.
            if self._share and (self._window is None or 2 * max(map(len, texts)) < self._window):
                lengths = choose_trunks([text[:-1] for text in texts])
            self._shared_prompts[key] = [
                Prompt(tokens=text, trunk=length)
                for text, length in zip(texts, lengths, strict=True)
            ]
        return self._shared_prompts[key]

    def _decode(self, prompts: Sequence[Prompt], decoding: _Decoding) -> list[Answer]:
        longest = max(len(prompt.tokens) for prompt in prompts) + decoding.max_new_tokens
        return decode(
            self.model,
            prompts,
            self._trunks,
            slots=self._budget.slots(longest),
            tokens=self._budget.tokens,
            max_new_tokens=decoding.max_new_tokens,
            end_tokens=self._end_tokens(),
            stopped=StopCheck(self._tokenizer, decoding.until),
        )

    def _end_tokens(self) -> frozenset[int]:
        """Those of the model's generation config, and the tokenizer's."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return frozenset(end for end in (*ends, self._stock.eot_token_id) if end is not None)

    def _generate_stock(self, texts: Sequence[str], settings: Mapping[str, Any]) -> list[Generated]:
        remark = (
            f"generation settings {dict(settings)} of the task, or those of the model, go beyond "
            "greedy decoding: lm-eval's slower generation is used, from the same seed each time"
        )
        if not self._told:
            self._told = True
            _LOG.warning("%s", remark)
        self._exceptions.append(remark)
        requests = [
            Instance(request_type="generate_until", doc={}, arguments=(text, dict(settings)), idx=0)
            for text in texts
        ]
        device = input_device(self.model)
        devices = [device] if device.type == "cuda" else []

        def answer() -> list[str]:
            torch.manual_seed(_SAMPLING_SEED)
            found: list[str] = self._stock.generate_until(requests, disable_tqdm=True)
            return found

        with torch.random.fork_rng(devices=devices):
            found = self._within_memory(answer)
        limit = normalize_gen_kwargs(dict(settings), self._stock.max_gen_toks)["max_gen_toks"]
        # The stock says only the text: as many tokens as were allowed is taken for cut off.
        lengths = [len(self._stock.tok_encode(text, add_special_tokens=False)) for text in found]
        return [
            Generated(text=text, cut_off=length >= limit, limit=limit)
            for text, length in zip(found, lengths, strict=True)
        ]

    def _within_memory(self, work: Callable[[], T]) -> T:
        """What `work` returns, done with a smaller budget where memory ran out; counts seconds."""
        while True:
            start = time.perf_counter()
            try:
                return work()
            except torch.OutOfMemoryError as error:
                self._take_less(error)
            finally:
                self.seconds += time.perf_counter() - start


@contextmanager
def _without_warnings(logger: str) -> Iterator[None]:
    """Nothing below an error from that logger."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)

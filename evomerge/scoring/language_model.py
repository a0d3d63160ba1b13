"""A live model as lm-eval sees it, without the work that lm-eval does anew for every candidate.

Nothing that depends on the weights is kept from one candidate to the next.
"""

import logging
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evomerge.errors import UserError
from evomerge.scoring.answers import Generated
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.encoding import Encoder
from evomerge.scoring.generator import Answer, Generator
from evomerge.scoring.gradient import Differentiable, SmoothTerms, smooth_terms
from evomerge.scoring.greedy import decodes_greedily
from evomerge.scoring.logits import input_device
from evomerge.scoring.stopping import StopCheck
from evomerge.scoring.token_model import TokenModel

_LOG = logging.getLogger(__name__)
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
        self.encoder = Encoder(self._stock)
        self._tokens = TokenModel(model, budget, self.encoder.max_length)
        self._told = False
        self.weights_changed()

    def weights_changed(self) -> None:
        """Forgets what depends on the weights, and begins to count seconds anew."""
        self._tokens.weights_changed()
        self._exceptions: list[str] = []
        if self._generator is not None:
            self._generator.weights_changed()

    @property
    def seconds(self) -> float:
        """Spent in forward passes and decoding since the weights changed."""
        return self._tokens.seconds

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was not done as usual since the weights changed, in words."""
        return (*self._tokens.remarks, *self._exceptions)

    @torch.no_grad()
    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the log-probability in nats, and whether the
        continuation is what greedy decoding would say.

        Raises CandidateError where it is NaN or memory runs out, UserError where a continuation
        has no tokens or more than the model can read.
        """
        return self._tokens.log_likelihoods([self.encoder.pair(*pair) for pair in pairs])

    @torch.no_grad()
    def rolling_log_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """Log-probability of each whole text in nats, in windows of at most max_length tokens."""
        windows = [self.encoder.windows(text) for text in texts]
        scores = iter(self._tokens.log_likelihoods([pair for pairs in windows for pair in pairs]))
        return [sum(next(scores)[0] for _ in pairs) for pairs in windows]

    def smooth_terms(self, documents: Iterable[Differentiable], *, tokens: int) -> SmoothTerms:
        """Their smooth scores, with the graph of how they come from the weights.

        tokens: in a pass, rows times columns. Raises torch.OutOfMemoryError."""
        limits = replace(self._tokens.limits, tokens=tokens)
        length = self.encoder.max_length
        return smooth_terms(self.model, documents, limits=limits, max_length=length)

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
        prompts = [self.encoder.prompt(text, decoding.max_new_tokens) for text in texts]
        answers = self._answers(prompts, decoding)
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

    def _answers(self, prompts: Sequence[list[int]], decoding: _Decoding) -> list[Answer]:
        if self._generator is None:
            return self._tokens.answers(
                prompts,
                max_new_tokens=decoding.max_new_tokens,
                end_tokens=self._end_tokens(),
                stopped=StopCheck(self._tokenizer, decoding.until),
            )
        generate = partial(
            self._generator.generate,
            self.model,
            prompts,
            max_new_tokens=decoding.max_new_tokens,
            stop=decoding.until,
            end_tokens=self._end_tokens(),
        )
        return self._tokens.within_memory(generate)

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
            self._stock.batch_size_per_gpu = self._budget.texts
            found: list[str] = self._stock.generate_until(requests, disable_tqdm=True)
            return found

        with torch.random.fork_rng(devices=devices):
            found = self._tokens.within_memory(answer)
        limit = normalize_gen_kwargs(dict(settings), self._stock.max_gen_toks)["max_gen_toks"]
        # The stock says only the text: as many tokens as were allowed is taken for cut off.
        lengths = [len(self._stock.tok_encode(text, add_special_tokens=False)) for text in found]
        return [
            Generated(text=text, cut_off=length >= limit, limit=limit)
            for text, length in zip(found, lengths, strict=True)
        ]


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

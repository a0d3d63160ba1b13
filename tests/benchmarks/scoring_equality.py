"""Part of scoring_speed.py: evomerge's answers beside stock lm-eval's, on tiny random models of
many architectures and on every kind of task.
"""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tests.benchmarks.scoring_documents import write_kinds
from tests.benchmarks.scoring_sides import Difference, Ours, Outcome, Stock, difference, together
from tests.families import FAMILIES

ARCHITECTURES = {
    "llama_tied": "Llama, tied embeddings",
    "mistral": "Mistral, window of 16",
    "gemma2": "Gemma 2, window of 16",
    "gemma3_text": "Gemma 3, window of 16",
    "qwen2": "Qwen 2",
    "qwen3": "Qwen 3",
    "mamba": "Mamba",
}
WINDOW, MAX_LENGTH = 16, 512
BATCH, OTHER_BATCHES = 8, (1, 32)
SPREAD = 0.3
"""Of random weights: wide enough that an answer's probability hangs on what stands before it."""


def configuration(name: str, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The family's, with room for the documents, which are longer than its sliding window."""
    config = FAMILIES[name]()
    config.vocab_size = len(tokenizer)
    if hasattr(config, "max_position_embeddings"):
        config.max_position_embeddings = MAX_LENGTH
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = WINDOW
    config.initializer_range = SPREAD
    return config


def random_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The same weights at each call, up to their rounding."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def equality(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device,
    documents: int,
    tokens: int | None,
    tolerance: float,
    failures: list[str],
) -> Iterator[str]:
    """Lines of a table in Markdown, as they are found; float32 failures are added to the list."""
    kinds = write_kinds(folder, documents)
    others = [str(size) for size in OTHER_BATCHES]
    yield (
        f"Random weights, {documents} documents of each kind; differences of log-likelihoods in "
        f"nats, of generated texts how many are equal. Stock: HFLM with batches of {BATCH}. "
        f"Stock to stock: batches of {BATCH} beside those of {' and of '.join(others)}."
    )
    yield ""
    yield (
        "| architecture | task kind | float32: largest difference | equal answers | metrics equal "
        "| bfloat16: evomerge to stock, median | largest | stock to stock, median | largest |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, title in ARCHITECTURES.items():
        config = configuration(name, tokenizer)

        def outcomes(
            dtype: torch.dtype,
            batches: Sequence[int],
            config: PretrainedConfig = config,
        ) -> list[Outcome]:
            model = random_model(config, dtype).to(device)
            return _outcomes(model, folder, kinds, tokenizer, tokens, batches)

        own, stock = outcomes(torch.float32, [BATCH])
        low, low_stock, *low_others = outcomes(torch.bfloat16, [BATCH, *OTHER_BATCHES])
        for kind in kinds:
            exact = difference(own, stock, kind)
            if exact.largest > tolerance or exact.equal_answers < exact.answers:
                failures.append(f"{title}, {kind}: {exact}")
            to_stock = difference(low_stock, low, kind)
            spread = together([difference(low_stock, each, kind) for each in low_others])
            yield (
                f"| {title} | {kind} | {_largest(exact)} | {_equal(exact)} | "
                f"{'yes' if exact.metrics_equal else 'no'} | {_median(to_stock)} | "
                f"{_largest(to_stock)} | {_median(spread)} | {_largest(spread)} |"
            )


def rounding(
    folder: Path,
    tasks: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    max_length: int,
    tokens: int | None,
    batches: Sequence[int],
) -> Iterator[str]:
    """A table in Markdown: how the model's log-likelihoods in bfloat16 depend on the batches, and
    how far they are from those of the same weights in float32."""
    first, *others = batches
    yield (
        "Differences of log-likelihoods in nats, median and largest, in bfloat16. Stock: HFLM with "
        f"batches of {first}; stock to stock: beside those of {' and of '.join(map(str, others))}; "
        "exact: stock with the same weights in float32."
    )
    yield ""
    yield (
        "| task | evomerge to stock | stock to stock | evomerge to exact | stock to exact | "
        "metrics of evomerge equal stock's | of stock equal stock's |"
    )
    yield "|---|---|---|---|---|---|---|"
    for task in tasks:
        model = model.to(torch.bfloat16)
        ours = Ours(folder, [task], tokenizer, tokens=tokens, max_length=max_length)
        ours.score(model)
        own = ours.outcome()
        stock, *more = [
            _of_stock(Stock(folder, [task], tokenizer, model, batch=size, max_length=max_length))
            for size in batches
        ]
        model = model.float()
        exact = _of_stock(
            Stock(folder, [task], tokenizer, model, batch=first, max_length=max_length)
        )
        to_stock = difference(stock, own, task)
        spread = together([difference(stock, each, task) for each in more])
        cells = [to_stock, spread, difference(exact, own, task), difference(exact, stock, task)]
        yield (
            f"| {task} | {' | '.join(f'{_median(c)}, {_largest(c)}' for c in cells)} | "
            f"{'yes' if to_stock.metrics_equal else 'no'} | "
            f"{'yes' if spread.metrics_equal else 'no'} |"
        )


def _of_stock(stock: Stock) -> Outcome:
    stock.score()
    return stock.outcome()


def _outcomes(
    model: PreTrainedModel,
    folder: Path,
    kinds: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    tokens: int | None,
    batches: Sequence[int],
) -> list[Outcome]:
    """Ours, and stock's at each batch size."""
    ours = Ours(folder, kinds, tokenizer, tokens=tokens, max_length=MAX_LENGTH)
    ours.score(model)
    found = [ours.outcome()]
    for size in batches:
        stock = Stock(folder, kinds, tokenizer, model, batch=size, max_length=MAX_LENGTH)
        stock.score()
        found.append(stock.outcome())
    return found


def _largest(found: Difference) -> str:
    return f"{found.largest:.1e}" if found.likelihoods else _equal(found)


def _median(found: Difference) -> str:
    return f"{statistics.median(found.likelihoods):.1e}" if found.likelihoods else ""


def _equal(found: Difference) -> str:
    return f"{found.equal_answers} of {found.answers}" if found.answers else ""

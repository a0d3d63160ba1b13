"""Parts of scoring_speed.py that set scoring beside the device: the share of the bare model's speed
that it reaches, and the share of its time that is spent outside the model.
"""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tests.benchmarks.measuring import in_turns, now, seconds

Shape = tuple[int, int]
"""Rows and columns of token ids that the model read in one pass."""
LARGE_BATCH = 1024  # tokens; a batch that keeps one CPU core or a GPU's small model busy


@contextmanager
def watched_shapes(model: PreTrainedModel) -> Iterator[list[Shape]]:
    """The shape of every pass through the first decoder layer, padding included."""
    shapes: list[Shape] = []

    def watch(_: nn.Module, arguments: Sequence[Any], named: dict[str, Any]) -> None:
        states = arguments[0] if arguments else named["hidden_states"]
        shapes.append((states.shape[0], states.shape[1]))

    hook = _first_layer(model).register_forward_pre_hook(watch, with_kwargs=True)
    try:
        yield shapes
    finally:
        hook.remove()


def _first_layer(model: PreTrainedModel) -> nn.Module:
    for name, module in model.named_modules():
        if re.search(r"(^|\.)(layers|h|blocks)\.0$", name):
            return module
    raise SystemExit(f"{type(model).__name__} has no first decoder layer that this script knows")


@dataclass(slots=True)
class Inside:
    """Seconds that a model's modules ran, and how many passes that were."""

    seconds: float = 0.0
    passes: int = 0


@contextmanager
def watched_seconds(model: PreTrainedModel) -> Iterator[Inside]:
    """Seconds inside the model, its decoder or its head, whichever is called from outside.

    A GPU is waited for before and after, so that its work is counted where it was asked for.
    """
    inside, depth, started = Inside(), 0, 0.0

    def enter(*_: object) -> None:
        nonlocal depth, started
        depth += 1
        if depth == 1:
            started = now(model.device)

    def leave(*_: object) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            inside.seconds += now(model.device) - started
            inside.passes += 1

    parts = {id(part): part for part in (model, model.get_decoder(), model.get_output_embeddings())}
    hooks = []
    for part in parts.values():
        # First before other hooks, and last after them: these belong to the pass.
        hooks.append(part.register_forward_pre_hook(enter, prepend=True))
        hooks.append(part.register_forward_hook(leave))
    try:
        yield inside
    finally:
        for hook in hooks:
            hook.remove()


class BareModel:
    """The model's own forward on full rows of random tokens; logits of each row's last position."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._generator = torch.Generator().manual_seed(0)

    def batch(self, shape: Shape) -> torch.Tensor:
        vocabulary = self._model.config.vocab_size
        tokens = torch.randint(3, vocabulary, shape, generator=self._generator)
        return tokens.to(self._model.device)

    @torch.inference_mode()
    def run(self, batches: Sequence[torch.Tensor]) -> None:
        for tokens in batches:
            self._model(input_ids=tokens, use_cache=False, logits_to_keep=1)


def device_row(
    name: str, score: Callable[[], None], model: PreTrainedModel, documents: int, repeats: int
) -> str:
    """One row of the table whose head is `DEVICE_HEAD`."""
    with watched_shapes(model) as shapes:
        score()
    bare = BareModel(model)
    same = [bare.batch(shape) for shape in shapes]
    tokens = sum(rows * columns for rows, columns in shapes)
    columns = max(columns for _, columns in shapes)
    large = [bare.batch((max(1, LARGE_BATCH // columns), columns))]
    for batches in (same, large):
        bare.run(batches)
    works = [score, lambda: bare.run(same), lambda: bare.run(large)]
    ours, theirs, best = in_turns(works, model.device, repeats)
    rate, same_rate, large_rate = tokens / ours, tokens / theirs, large[0].numel() / best
    common = ", ".join(
        f"{rows} x {columns}" for (rows, columns), _ in Counter(shapes).most_common(3)
    )
    return (
        f"| {name} | {documents} | {tokens} | {len(shapes)} | {common} | {rate:.0f} | "
        f"{same_rate:.0f} | {rate / same_rate:.0%} | {large_rate:.0f} | {rate / large_rate:.0%} |"
    )


DEVICE_HEAD = [
    "| task | documents | tokens | passes | commonest shapes | evomerge, tokens/s | bare, same "
    "shapes | share | bare, full batches | share |",
    "|---|---|---|---|---|---|---|---|---|---|",
]


def profile_row(
    name: str,
    score: Callable[[], None],
    passes: Callable[[], float],
    model: PreTrainedModel,
    documents: int,
    repeats: int,
) -> str:
    """One row of the table whose head is `PROFILE_HEAD`.

    passes: seconds of wall clock in the passes of the last trial: forward, copies of keys and
    values, and the softmax over the vocabulary, which stock lm-eval computes outside its model too.
    """
    first = seconds(score, model.device)
    whole, inside, around, calls = [], [], [], 0
    for _ in range(repeats):
        with watched_seconds(model) as watched:
            whole.append(seconds(score, model.device))
        inside.append(watched.seconds)
        around.append(passes() - watched.seconds)
        calls = watched.passes
    rest = [w - i - a for w, i, a in zip(whole, inside, around, strict=True)]
    total, forward, logits, outside = map(statistics.median, (whole, inside, around, rest))
    return (
        f"| {name} | {documents} | {first:.2f} | {total:.2f} | {forward:.2f} | {logits:.3f} | "
        f"{outside:.3f} | {outside / total:.1%} | {1e3 * outside / documents:.2f} | {calls} |"
    )


PROFILE_HEAD = [
    "| task | documents | first trial, s | trial, s | forward, s | caches and softmax, "
    "s | outside, s | share outside | outside, ms per document | calls of the model |",
    "|---|---|---|---|---|---|---|---|---|---|",
]

"""What makes candidates in the live model, scores them, and tells how to change them."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch

from evomerge.errors import CandidateError
from evomerge.merging.calibration import calibrated_sources
from evomerge.merging.throughput import wait_for
from evomerge.merging.workspace import Workspace
from evomerge.methods.derivative import Slopes
from evomerge.recipe import Recipe
from evomerge.scoring.scorecard import SMOOTH, DocumentScores, Scorecard
from evomerge.scoring.scorer import KINDS, Documents, GoOn, Kind, Scorer, score_blocks
from evomerge.searching.guidance import Gradient
from evomerge.searching.run_folder import Side

log = logging.getLogger(__name__)

_LEAST = 64  # tokens in a pass; with less, memory is not the batch's fault


@dataclass(slots=True, kw_only=True)
class Evaluator:
    """The live model and the scorer."""

    workspace: Workspace
    scorer: Scorer
    device: torch.device
    blocks: Callable[[Side], tuple[Documents, ...]]
    """The documents of a side, in the parts in which they are scored."""
    calibrate: Callable[[Recipe, tuple[str, ...]], None]
    """Makes what a recipe's methods need to know of these sources' activations."""
    gradient_tokens: int
    """Tokens in a pass that is gone through backwards; halved where memory runs out."""
    unchanged: Callable[[], None]
    """Looks at the models' files before a candidate is made of them, and after."""

    def __call__(
        self,
        recipe: Recipe,
        documents: Documents | Side | Sequence[Documents],
        /,
        *,
        kinds: AbstractSet[Kind] = KINDS,
        go_on: GoOn = lambda scores: True,
    ) -> tuple[Scorecard, Mapping[str, float]]:
        """See `Evaluate`."""
        seconds = self._load(recipe)
        if isinstance(documents, str):
            documents = self.blocks(documents)
        blocks = (documents,) if isinstance(documents, Mapping) else documents
        scorecard = score_blocks(
            self.scorer, self.workspace.model, blocks, kinds=kinds, go_on=go_on
        )
        return scorecard, {"merge": seconds, **scorecard.seconds}

    def gradient(
        self, recipe: Recipe, documents: Documents, weights: Mapping[str, float], /
    ) -> Gradient:
        """See `Differentiate`."""
        merge = self._load(recipe)
        start = time.perf_counter()
        while True:
            try:
                scores, slopes = self._slopes(recipe, documents, weights)
                break
            except torch.OutOfMemoryError as error:
                before, self.gradient_tokens = self.gradient_tokens, self.gradient_tokens // 2
                if self.gradient_tokens < _LEAST:
                    raise CandidateError(
                        f"out of memory with {before} tokens in a pass backwards: {error}"
                    ) from error
                log.warning(
                    "out of memory with %d tokens in a pass backwards: %d from here",
                    before,
                    self.gradient_tokens,
                )
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        seconds = {"merge": merge, "model": time.perf_counter() - start}
        return Gradient(scores=scores, slopes=slopes, seconds=seconds)

    def _slopes(
        self, recipe: Recipe, documents: Documents, weights: Mapping[str, float]
    ) -> tuple[dict[str, DocumentScores], tuple[Slopes, ...]]:
        found: dict[str, dict[int, float]] = {task: {} for task in documents}
        weight = {task: weights[task] / len(own) for task, own in documents.items()}

        def terms() -> Iterator[torch.Tensor]:
            for batch in self.scorer.smooth_terms(
                self.workspace.model, documents, tokens=self.gradient_tokens
            ):
                values = torch.stack(list(batch.values())).detach().tolist()
                for (task, number), value in zip(batch, values, strict=True):
                    found[task][number] = value
                yield torch.stack(
                    [weight[task] * score for (task, _), score in batch.items()]
                ).sum()

        slopes = self.workspace.slopes(recipe, terms())
        scores = {
            task: DocumentScores(
                documents=tuple(sorted(values)),
                values={SMOOTH: tuple(values[number] for number in sorted(values))},
            )
            for task, values in found.items()
        }
        return scores, slopes

    def _load(self, recipe: Recipe) -> float:
        """Seconds to make the candidate."""
        start = time.perf_counter()
        self.unchanged()
        try:
            self.calibrate(recipe, calibrated_sources(recipe))
            self.workspace.load(recipe)
        except torch.OutOfMemoryError as error:
            raise CandidateError(f"out of memory while merging: {error}") from error
        wait_for(self.device)
        self.unchanged()
        return time.perf_counter() - start

"""The live model: loaded once, then overwritten in place by one candidate after the other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from evomerge.architectures import place
from evomerge.errors import CandidateError, UserError
from evomerge.merging.feed import feed
from evomerge.merging.gradients import recipe_slopes
from evomerge.merging.job import Job
from evomerge.merging.layout import Layout, live_views
from evomerge.merging.models import Models
from evomerge.merging.offloaded import used_on
from evomerge.merging.plan import check_finite, merge_job, plan_merge
from evomerge.merging.stacking import LayerPool, Stack
from evomerge.methods.apply import Pass, chunked
from evomerge.methods.derivative import Slopes
from evomerge.recipe import BASE, Recipe


class Workspace:
    """A transformers model on a device, and which recipe's weights it holds.

    `models` must have been opened with a layout of the same dtype.
    """

    def __init__(
        self,
        models: Models,
        *,
        dtype: torch.dtype,
        device: torch.device,
        device_map: str | Mapping[str, str | int | torch.device] | None = None,
        max_memory: Mapping[str | int, int] | None = None,
        trust_remote_code: bool = False,
        run: Pass = chunked,
    ) -> None:
        """device_map: spreads the model over devices, as accelerate does (`auto`, or a mapping
        from modules); `device` is then the first of them. max_memory: bytes that it may take of
        each GPU (by number) and of the host (`cpu`), where what fits on no GPU is kept."""
        folder = models.checkpoints[BASE].folder
        try:
            self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                device_map=device_map,
                max_memory=max_memory,
            )
        except (ValueError, OSError, KeyError, ImportError) as error:
            raise UserError(f"base ({folder}): transformers cannot load it: {error}") from error
        _resize(self.model, models)
        if device_map is None:
            self.model.to(device)  # type: ignore[arg-type]
        self.model.train(False)
        self.holds: str | None = None
        """Fingerprint of the recipe whose weights are in the model; None while it is written."""
        self._models = models
        self._run = run
        self._stackable = device_map is None
        self._pool: LayerPool | None = None
        self._stack: Stack | None = None
        self._device = device
        self.devices: Mapping[str, torch.device] = {}
        """Where each slot is merged: where its module runs, also if it is kept elsewhere."""
        self._written: dict[str, Job] = {}
        self._look(models.layout)

    @torch.no_grad()
    def load(self, recipe: Recipe) -> None:
        """Makes the recipe's weights in the live model, and only those that are not there yet.

        UserError for a mistake in the recipe, before anything is written; CandidateError for
        weights with NaN or infinity. After an error the model holds no recipe.
        """
        fingerprint = recipe.fingerprint()
        if self.holds == fingerprint:
            return
        jobs = plan_merge(recipe, self._models)
        self.holds = None
        self._arrange(recipe, jobs)
        changed = [job for job in jobs if self._written.get(job.slot.name) != job]
        finite = {}
        for job, operands in feed(changed, self._models, self.devices):
            name = job.slot.name
            view = self._views[name]
            self._written.pop(name, None)
            device = self.devices[name]
            here = view if view.device == device else torch.empty_like(view, device=device)
            merge_job(job, self._models, operands, out=here, run=self._run)
            finite[name] = here.isfinite().all().to(self._device)
            if here is not view:
                view.copy_(here)
            self._written[name] = job
        try:
            check_finite(finite)
        except CandidateError:
            self._written.clear()
            raise
        self.holds = fingerprint

    def slopes(self, recipe: Recipe, terms: Iterable[torch.Tensor]) -> tuple[Slopes, ...]:
        """How Σ terms, scores of the weights that are there now, changes with the numbers of each
        rule of `recipe`, which made them; see `recipe_slopes`."""
        assert self.holds == recipe.fingerprint()
        return recipe_slopes(recipe, self._models, self.model, terms)

    def _arrange(self, recipe: Recipe, jobs: Sequence[Job]) -> None:
        """Gives the live model the layers of the recipe's stack, if it has not got them."""
        stack = recipe.layers_of_stack()
        if stack == self._stack:
            return
        if not self._stackable:
            raise UserError(
                "stack: the live model is spread over devices, where its layers cannot be "
                "rearranged; expected a model on one device"
            )
        stacks = self._models.stacks
        whole = tuple(range(stacks.depth))
        if self._pool is None:
            self._pool = LayerPool(self.model, stacks)
        moved = self._pool.arrange(whole if stack is None else stack)
        self._stack = stack
        layout = replace(self._models.layout, slots={job.slot.name: job.slot for job in jobs})
        kept = {n: job for n, job in self._written.items() if place(n).layer not in moved}
        self._written = {name: job for name, job in kept.items() if name in layout.slots}
        self._look(layout)

    def _look(self, layout: Layout) -> None:
        """Finds where the tensors of the layout lie in the live model."""
        self._views = live_views(self.model, layout)
        self.devices = {n: used_on(self.model, s.parameter) for n, s in layout.slots.items()}


def _resize(model: PreTrainedModel, models: Models) -> None:
    """Gives the model the rows of the merged vocabulary, and its numbers to special tokens."""
    for name in models.layout.vocabulary[:1]:
        slot = models.layout.slots[name]
        if model.get_parameter(slot.parameter).shape[0] != slot.shape[0]:
            model.resize_token_embeddings(slot.shape[0], mean_resizing=False)
    if models.vocabularies is None:
        return
    for settings in (model.config, model.generation_config):
        if settings is not None:
            for key, number in models.vocabularies.moved_ids(settings.to_dict()).items():
                setattr(settings, key, number)

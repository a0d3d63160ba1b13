"""The live model: loaded once, then overwritten in place by one candidate after the other."""

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from evomerge.errors import UserError
from evomerge.merging.layout import live_views
from evomerge.merging.models import Models
from evomerge.merging.plan import check_finite, merge_job, plan_merge
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
        trust_remote_code: bool = False,
    ) -> None:
        folder = models.checkpoints[BASE].folder
        try:
            self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code
            )
        except (ValueError, OSError, KeyError, ImportError) as error:
            raise UserError(f"base ({folder}): transformers cannot load it: {error}") from error
        self.model.to(device)  # type: ignore[arg-type]
        self.model.train(False)
        self.holds: str | None = None
        """Fingerprint of the recipe whose weights are in the model; None while it is written."""
        self._models = models
        self._views = live_views(self.model, models.layout)

    @torch.no_grad()
    def load(self, recipe: Recipe) -> None:
        """Makes the recipe's weights in the live model; nothing to do where it holds them.

        UserError for a mistake in the recipe, before anything is written; CandidateError for
        weights with NaN or infinity. After an error the model holds no recipe.
        """
        fingerprint = recipe.fingerprint()
        if self.holds == fingerprint:
            return
        jobs = plan_merge(recipe, self._models)
        self.holds = None
        finite = {}
        for job in jobs:
            view = self._views[job.slot.name]
            merge_job(job, self._models, out=view)
            finite[job.slot.name] = view.isfinite().all()
        check_finite(finite)
        self.holds = fingerprint

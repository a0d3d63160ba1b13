"""A recipe -> one LoRA adapter on the base, with the error that its rank costs, by tensor."""

import json
import logging
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from evomerge.checkpoints.adapter import CONFIG, WEIGHTS
from evomerge.checkpoints.writer import result_folder, write_tensors
from evomerge.errors import UserError
from evomerge.exporting import RECIPE_FILE, pinned_recipe
from evomerge.files import write_text
from evomerge.merging.calibration import calibrate
from evomerge.merging.models import check_hashes, open_models
from evomerge.merging.modules import linear_weights
from evomerge.merging.plan import merged_tensors
from evomerge.model_card import model_card
from evomerge.recipe import BASE, Recipe

log = logging.getLogger(__name__)
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterExport:
    """What was written."""

    folder: Path
    rank: int
    errors: dict[str, float]
    """Linear weight -> ‖δ − BA‖ / ‖δ‖ of its task vector δ (Frobenius norms)."""
    whole: tuple[str, ...]
    """Changed tensors that are no linear weights, saved in full (modules_to_save)."""

    def sentence(self) -> str:
        """The errors in words."""
        if not self.errors:
            return f"no linear weight differs from the base; {len(self.whole)} tensors in full"
        worst = max(self.errors, key=lambda name: self.errors[name])
        return (
            f"rank {self.rank}: relative error of {len(self.errors)} task vectors median "
            f"{statistics.median(self.errors.values()):.2g}, largest {self.errors[worst]:.2g} "
            f"({worst}); {len(self.whole)} other tensors in full"
        )


def merge_as_adapter(
    recipe: Recipe | Path | str,
    out: Path | str,
    rank: int,
    *,
    force: bool = False,
    trust_remote_code: bool = False,
) -> AdapterExport:
    """Writes the merged model minus the base as a PEFT LoRA folder of this rank.

    Each task vector of a linear weight is cut to its largest `rank` singular values (Eckart and
    Young 1936); other tensors that changed are saved whole. The arithmetic is float32. UserError
    as for `merge`, and for models whose files name weights otherwise than their modules do.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.read(Path(recipe))
    whole_recipe = replace(recipe, dtype="float32")
    models = open_models(whole_recipe, trust_remote_code=trust_remote_code)
    check_hashes(models, recipe)
    if recipe.stack is not None:
        raise UserError(
            "a stack of layers has no place in an adapter on the base; export the full model "
            "instead (without --as-adapter)"
        )
    calibrate(
        whole_recipe,
        models,
        device=torch.device("cpu"),
        trust_remote_code=trust_remote_code,
    )
    linear = linear_weights(models.base.folder, trust_remote_code=trust_remote_code)
    tensors: dict[str, torch.Tensor] = {}
    errors: dict[str, float] = {}
    whole, targets = [], []
    for name, merged in merged_tensors(whole_recipe, models):
        slot = models.layout.slots[name]
        base = models.own(BASE, name).float()
        resized = merged.shape != base.shape  # another number of tokens
        delta = merged if resized else merged - base
        if not merged.is_floating_point() or not delta.any():
            continue
        if slot.parameter != name:
            raise UserError(
                f"{name} is part of {slot.parameter} in memory, which no LoRA adapter can name; "
                "export the full model instead (without --as-adapter)"
            )
        module = name.removesuffix(".weight")
        if name in linear and not resized and name not in models.layout.aliases.values():
            b, a, errors[name] = _cut(delta.T if linear[name] else delta, rank)
            tensors[f"{_PREFIX}{module}.lora_A.weight"] = a
            tensors[f"{_PREFIX}{module}.lora_B.weight"] = b
            targets.append(module)
        else:
            shared = [alias for alias, slot in models.layout.aliases.items() if slot == name]
            for same in (name, *shared):  # peft wants tied weights under both names
                tensors[f"{_PREFIX}{same}"] = merged.clone()
            whole.append(name)
    result = AdapterExport(folder=Path(out), rank=rank, errors=errors, whole=tuple(whole))
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": pinned_recipe(recipe, models).base.path,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": targets,
        "modules_to_save": sorted({name.rpartition(".")[0] for name in whole}) or None,
        "ensure_weight_tying": bool(models.layout.aliases) and bool(whole),
        "fan_in_fan_out": any(linear.values()),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    with result_folder(Path(out), force=force) as folder:
        write_tensors(folder / WEIGHTS, tensors)
        write_text(folder / CONFIG, json.dumps(settings, indent=2))
        if models.vocabularies is not None and models.vocabularies.wanted != BASE:
            models.vocabularies.save(folder)
        card = model_card(recipe, Path(out).name)
        write_text(folder / "README.md", f"{card}\n{_table(result)}")
        pinned_recipe(recipe, models).write(folder / RECIPE_FILE)
    log.info("%s", result.sentence())
    return result


def _cut(delta: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """B [out, rank], A [rank, in] and the relative error of their product."""
    u, sigma, v = torch.linalg.svd(delta, full_matrices=False)
    root = sigma[:rank].sqrt()
    b, a = u[:, :rank] * root, root[:, None] * v[:rank]
    missing = rank - len(root)
    if missing > 0:  # a weight with fewer rows or columns than the rank
        b = torch.nn.functional.pad(b, (0, missing))
        a = torch.nn.functional.pad(a, (0, 0, 0, missing))
    error = sigma[rank:].double().square().sum().sqrt() / sigma.double().square().sum().sqrt()
    return b.contiguous(), a.contiguous(), float(error)


def _table(result: AdapterExport) -> str:
    rows = [f"| {name} | {error:.3g} |" for name, error in result.errors.items()]
    lines = [
        "## As an adapter",
        "",
        f"{result.sentence()}.",
        "",
        "| weight | ‖δ − BA‖ / ‖δ‖ |",
        "|---|---|",
        *rows,
        "",
        f"Saved in full: {', '.join(result.whole) or 'nothing'}.",
        "",
    ]
    return "\n".join(lines)

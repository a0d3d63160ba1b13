"""The part of a recipe that all candidates of a search share: the models, found, hashed, and looked
at for what no merge could mend."""

import dataclasses
import logging
from pathlib import Path

from evomerge.checkpoints.dequantised import open_checkpoint
from evomerge.checkpoints.hashes import HashCache
from evomerge.checkpoints.locate import locate
from evomerge.config import LoadedConfig
from evomerge.errors import UserError
from evomerge.merging.calibration import check_text
from evomerge.merging.finite import not_finite, where_not_finite
from evomerge.merging.models import Models
from evomerge.recipe import BASE, Calibration, DType, Model, Recipe

log = logging.getLogger(__name__)


def template_of(loaded: LoadedConfig) -> Recipe:
    """Models, seed and dtype as configured; no rules, and no hashes."""
    config = loaded.config

    def found(model: Model) -> Model:
        folder = loaded.folder / Path(model.path).expanduser()
        return dataclasses.replace(model, path=str(folder.resolve())) if folder.exists() else model

    base = found(config.base)
    return Recipe(
        base=base,
        sources={name: found(model) for name, model in config.sources.items()},
        rules=(),
        seed=config.seed,
        dtype=config.dtype or dtype_of(base, trust_remote_code=config.trust_remote_code),
        vocabulary=config.vocabulary,
        calibration=_calibration(loaded),
    )


def _calibration(loaded: LoadedConfig) -> Calibration | None:
    calibration = loaded.config.calibration
    if calibration is None:
        return None
    file = loaded.folder / Path(calibration.file).expanduser()
    path = str(file.resolve()) if file.is_file() else calibration.file
    located = dataclasses.replace(calibration, file=path)
    return dataclasses.replace(located, sha256=check_text(located))


def dtype_of(base: Model, *, trust_remote_code: bool = False) -> DType:
    """The dtype that the base's config.json names."""
    folder = locate(base.path, base.revision)
    content = open_checkpoint(folder, trust_remote_code=trust_remote_code).config
    named = content.get("dtype") or content.get("torch_dtype") or "float32"
    known: dict[str, DType] = {n: n for n in ("float32", "float16", "bfloat16")}
    if named not in known:
        raise UserError(f"base: {folder}: dtype is {named!r}; expected one of {', '.join(known)}")
    return known[named]


def with_hashes(template: Recipe, models: Models, hashes: HashCache) -> Recipe:
    """With those of the weights; UserError where a model has others than it is said to have."""
    found = {name: hashes.sha256(models.checkpoints[name]) for name in models.checkpoints}
    for name, sha256 in found.items():
        expected = template.model(name).sha256
        if expected not in (None, sha256):
            raise UserError(f"{name}: sha256 of the weights is {sha256}; expected {expected}")
    first: dict[str, str] = {}
    for name, sha256 in found.items():
        if first.setdefault(sha256, name) != name:
            log.warning("%s and %s have the same weights", first[sha256], name)
    return dataclasses.replace(
        template,
        base=dataclasses.replace(template.base, sha256=found[BASE]),
        sources={
            name: dataclasses.replace(model, sha256=found[name])
            for name, model in template.sources.items()
        },
    )


def refuse_not_finite(template: Recipe, models: Models, hashes: HashCache) -> None:
    """UserError for a model with NaN or infinity, which every merge of it would have."""
    for name in models.checkpoints:
        sha256 = template.model(name).sha256
        assert sha256 is not None

        def words(name: str = name) -> str:
            found = not_finite(models, name)
            return where_not_finite(found) if found else ""

        if wrong := hashes.checked(sha256, words):
            raise UserError(
                f"{name} ({models.checkpoints[name].folder}): {wrong}; expected finite weights: "
                "download or train the model again, or leave it out"
            )

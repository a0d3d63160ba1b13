"""Whether models can be merged, and what to expect: norms, angles and conflicts of task vectors."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch

from evomerge.architectures import place
from evomerge.checkpoints.adapter import Adapter, is_adapter
from evomerge.checkpoints.dequantised import open_checkpoint
from evomerge.checkpoints.locate import locate
from evomerge.checkpoints.tokenizer import check_same_vocabulary, has_tokenizer, load_tokenizer
from evomerge.errors import UserError
from evomerge.files import write_text
from evomerge.merging.models import Models, differences, open_models
from evomerge.methods.products import gram_of_deltas
from evomerge.methods.statistics import inner_products
from evomerge.recipe import BASE, Model, Recipe

_POWER_STEPS = 12
_ALMOST_ONE = 0.9999


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found; the frames are empty where the models cannot be merged."""

    problems: tuple[str, ...]
    """Why they cannot be merged, in words; none: they can."""
    remarks: tuple[str, ...]
    """What is odd: a source that is the base, two that are copies."""
    vectors: pd.DataFrame
    """Per tensor and source: tensor, layer (-1: none), part, source, elements, norm, base_norm
    (Frobenius), stable_rank (‖δ‖_F² / ‖δ‖_2², Rudelson and Vershynin 2007; of matrices)."""
    pairs: pd.DataFrame
    """Per tensor and pair of sources: tensor, layer, part, first, second, product ⟨δ_i, δ_j⟩,
    both (entries that both change), opposed (of these, with unlike signs)."""

    def table(self, *, full: bool = False) -> pd.DataFrame:
        """Per layer (and part, if `full`): ‖δ‖ / ‖w0‖ of each source, then over all pairs the mean
        cosine and the share of sign conflicts, and the mean stable rank."""
        by = ["layer", "part"] if full else ["layer"]
        vectors = self.vectors.assign(
            square=self.vectors["norm"] ** 2, base_square=self.vectors["base_norm"] ** 2
        )
        sums = vectors.groupby([*by, "source"], sort=False)[["square", "base_square"]].sum()
        norms = sums["square"] ** 0.5
        relative = (sums["square"] / sums["base_square"]) ** 0.5
        table = relative.unstack("source")[list(dict.fromkeys(self.vectors["source"]))]
        if len(self.pairs):
            grouped = self.pairs.groupby([*by, "first", "second"], sort=False)
            pairs = grouped[["product", "both", "opposed"]].sum().reset_index()
            lengths = [
                norms.reindex(pd.MultiIndex.from_frame(pairs[[*by, end]])).to_numpy()
                for end in ("first", "second")
            ]
            pairs["cosine"] = pairs["product"] / (lengths[0] * lengths[1])
            means = pairs.groupby(by)[["cosine"]].mean()
            counts = pairs.groupby(by)[["both", "opposed"]].sum()
            table["cosine"] = means["cosine"]
            table["conflicts"] = counts["opposed"] / counts["both"].clip(lower=1)
        table["stable_rank"] = self.vectors.groupby(by)["stable_rank"].mean()
        return table.reset_index()


def inspect(base: str, sources: Sequence[str], names: Sequence[str]) -> Inspection:
    """Looks at a base and its sources, one tensor of each at a time; about one pass over the files.

    names: of the sources, in their order. UserError for a base that cannot be read; whatever is
    wrong with a source is a problem in the result.
    """
    models = {BASE: _model(base)} | {
        n: _model(path) for n, path in zip(names, sources, strict=True)
    }
    problems = _problems(models)
    recipe = Recipe(
        base=models[BASE], sources={name: models[name] for name in names}, rules=(), dtype="float32"
    )
    if not problems:
        try:
            return _measured(open_models(recipe), tuple(names))
        except UserError as error:
            problems = [str(error)]
    empty = pd.DataFrame()
    return Inspection(problems=tuple(problems), remarks=(), vectors=empty, pairs=empty)


def _model(text: str) -> Model:
    path, _, revision = text.partition("@")
    return Model(path=path, revision=revision or None)


def _problems(models: dict[str, Model]) -> list[str]:
    """Every difference that headers, configurations and tokenizers show."""
    folders = {name: locate(model.path, model.revision) for name, model in models.items()}
    base = open_checkpoint(folders.pop(BASE))
    vocabulary = load_tokenizer(base.folder) if has_tokenizer(base.folder) else None
    problems: list[str] = []
    for name, folder in folders.items():
        try:
            source = Adapter(folder, base) if is_adapter(folder) else open_checkpoint(folder)
            problems += differences(name, source, base)
            if vocabulary is not None and has_tokenizer(source.folder):
                check_same_vocabulary(name, load_tokenizer(source.folder), vocabulary)
        except UserError as error:
            problems.append(str(error))
    return problems


def _measured(models: Models, names: tuple[str, ...]) -> Inspection:
    vectors: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    distances = dict.fromkeys(combinations(range(len(names)), 2), 0.0)
    for slot in models.layout.slots.values():
        if not slot.dtype.is_floating_point:
            continue
        where = place(slot.name)
        at = {
            "tensor": slot.name,
            "layer": -1 if where.layer is None else where.layer,
            "part": where.part,
        }
        operands = models.operands(slot.name, names)
        whole = inner_products(*operands)["gram"]
        gram = gram_of_deltas(whole)
        start = operands[0].float()
        deltas = [source.float() - start for source in operands[1:]]
        for i, name in enumerate(names):
            norm = max(0.0, float(gram[i, i])) ** 0.5
            row = {"source": name, "elements": start.numel(), "norm": norm}
            row |= {"base_norm": float(whole[0, 0]) ** 0.5, "stable_rank": _rank(deltas[i], norm)}
            vectors.append({**at, **row})
        for i, j in combinations(range(len(names)), 2):
            both = (deltas[i] != 0) & (deltas[j] != 0)
            opposed = both & ((deltas[i] > 0) != (deltas[j] > 0))
            row = {"first": names[i], "second": names[j], "product": float(gram[i, j])}
            pairs.append({**at, **row, "both": int(both.sum()), "opposed": int(opposed.sum())})
            distances[i, j] += int((deltas[i] != deltas[j]).sum())
        models.forget()
    found = pd.DataFrame(vectors)
    copies = [(names[i], names[j]) for (i, j), count in distances.items() if count == 0]
    return Inspection(
        problems=(),
        remarks=tuple(_remarks(found, pd.DataFrame(pairs), copies)),
        vectors=found,
        pairs=pd.DataFrame(pairs),
    )


def _remarks(
    vectors: pd.DataFrame, pairs: pd.DataFrame, copies: list[tuple[str, str]]
) -> list[str]:
    norms = (vectors["norm"] ** 2).groupby(vectors["source"], sort=False).sum() ** 0.5
    remarks = [f"{name} is the base itself" for name, norm in norms.items() if norm == 0]
    remarks += [f"{first} and {second} are copies of each other" for first, second in copies]
    if not len(pairs):
        return remarks
    sums = pairs.groupby(["first", "second"], sort=False)["product"].sum().reset_index()
    for row in sums.to_dict("records"):
        first, second = str(row["first"]), str(row["second"])
        length = norms[first] * norms[second]
        same_way = length and row["product"] / length > _ALMOST_ONE
        if same_way and (first, second) not in copies:
            remarks.append(f"{first} and {second} point the same way (cosine above 0.9999)")
    return remarks


def _rank(delta: torch.Tensor, norm: float) -> float:
    """‖δ‖_F² / ‖δ‖_2², the spectral norm by power iteration from a fixed start; NaN for vectors."""
    if delta.dim() != 2 or norm == 0:
        return float("nan")
    vector = torch.ones(delta.shape[1])
    for _ in range(_POWER_STEPS):
        vector = delta.T @ (delta @ vector)
        length = vector.norm()
        if length == 0:
            return float("nan")
        vector = vector / length
    return float(norm**2 / (delta @ vector).double().square().sum())


def write_json(inspection: Inspection, path: Path) -> None:
    """Problems, remarks and both frames as records."""
    content = {
        "problems": inspection.problems,
        "remarks": inspection.remarks,
        "vectors": json.loads(inspection.vectors.to_json(orient="records")),
        "pairs": json.loads(inspection.pairs.to_json(orient="records")),
    }
    write_text(path, json.dumps(content, indent=1))


def draw(inspection: Inspection, path: Path) -> None:
    """Heatmaps over layers and parts: ‖δ‖ / ‖w0‖ per source, mean cosine, sign conflicts."""
    table = inspection.table(full=True)
    columns = [c for c in table.columns if c not in ("layer", "part", "stable_rank")]
    figure, axes = plt.subplots(
        len(columns), 1, figsize=(10, 1.6 * len(columns)), squeeze=False, layout="constrained"
    )
    for axis, column in zip(axes[:, 0], columns, strict=True):
        grid = table.pivot_table(index="part", columns="layer", values=column, sort=False)
        grid = grid[sorted(grid.columns)]
        picture = axis.imshow(grid.to_numpy(), aspect="auto", cmap="viridis")
        axis.set_yticks(range(len(grid.index)), grid.index)
        names = ["ends" if int(layer) < 0 else str(layer) for layer in grid.columns.tolist()]
        axis.set_xticks(range(len(names)), names)
        axis.set_title(column if column in ("cosine", "conflicts") else f"‖δ‖ / ‖w0‖ of {column}")
        figure.colorbar(picture, ax=axis)
    figure.savefig(path, dpi=110)
    plt.close(figure)

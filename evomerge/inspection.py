"""Whether models can be merged, and what to expect: norms, angles and conflicts of task vectors."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from evomerge.architectures import PARTS, place
from evomerge.checkpoints.adapter import Adapter, is_adapter
from evomerge.checkpoints.dequantised import open_checkpoint
from evomerge.checkpoints.locate import locate
from evomerge.checkpoints.tokenizer import Vocabularies, read_vocabularies
from evomerge.devices import choose_device
from evomerge.errors import UserError
from evomerge.files import write_text
from evomerge.merging.finite import where_not_finite
from evomerge.merging.models import Models, differences, open_models
from evomerge.methods.products import gram_of_deltas
from evomerge.methods.spectrum import effective_rank
from evomerge.methods.statistics import inner_products
from evomerge.recipe import BASE, UNION, Model, Recipe

_POWER_STEPS = 12
_ALMOST_ONE = 0.9999
_QUICKLY_RANKED = 1024  # smaller side of matrices whose singular values take a second at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found; the frames are empty where the models cannot be merged."""

    problems: tuple[str, ...]
    """Why they cannot be merged, in words; none: they can."""
    remarks: tuple[str, ...]
    """What is odd: a source that is the base, two that are copies."""
    vectors: pd.DataFrame
    """Per tensor and source: tensor, layer (-1: none), part, source, elements, norm, base_norm
    (Frobenius), stable_rank (‖δ‖_F² / ‖δ‖_2², Rudelson and Vershynin 2007; of matrices) and
    effective_rank (Roy and Vetterli 2007; of matrices, NaN where it was left out)."""
    pairs: pd.DataFrame
    """Per tensor and pair of sources: tensor, layer, part, first, second, product ⟨δ_i, δ_j⟩,
    cosine, both (entries that both change), opposed (of these, with unlike signs)."""

    def table(self, *, full: bool = False) -> pd.DataFrame:
        """Per layer (and part, if `full`): ‖δ‖ / ‖w0‖ of each source, then over all pairs the mean
        cosine and the share of sign conflicts, and the mean ranks."""
        by = ["layer", "part"] if full else ["layer"]
        sums = self._norms(by) ** 2
        relative = (sums["norm"] / sums["base_norm"]) ** 0.5
        table = relative.unstack("source")[list(dict.fromkeys(self.vectors["source"]))]
        if len(self.pairs):
            table["cosine"] = self._cosines(by).groupby(level=by).mean()
            counts = self.pairs.groupby(by)[["both", "opposed"]].sum()
            table["conflicts"] = counts["opposed"] / counts["both"].clip(lower=1)
        for rank in ("stable_rank", "effective_rank"):
            if self.vectors[rank].notna().any():
                table[rank] = self.vectors.groupby(by)[rank].mean()
        return _in_order(table.reset_index())

    def cosines(self) -> pd.DataFrame:
        """Per layer and part: the cosine of each pair of task vectors, as `first·second`."""
        frame = self._cosines(["layer", "part"]).unstack(["first", "second"])
        frame.columns = pd.Index(["·".join(pair) for pair in frame.columns.to_list()])
        return _in_order(frame.reset_index())

    def _norms(self, by: list[str]) -> pd.DataFrame:
        """‖δ‖ and ‖w0‖ of all tensors of a group together, per source."""
        squares = self.vectors.assign(
            norm=self.vectors["norm"] ** 2, base_norm=self.vectors["base_norm"] ** 2
        )
        return squares.groupby([*by, "source"], sort=False)[["norm", "base_norm"]].sum() ** 0.5

    def _cosines(self, by: list[str]) -> pd.Series:
        """Of each pair over all tensors of a group together."""
        norms = self._norms(by)["norm"]
        products = self.pairs.groupby([*by, "first", "second"], sort=False)["product"].sum()
        places = products.reset_index()
        lengths = [
            norms.reindex(pd.MultiIndex.from_frame(places[[*by, end]])).to_numpy()
            for end in ("first", "second")
        ]
        return pd.Series(products.to_numpy() / (lengths[0] * lengths[1]), index=products.index)


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by layer, the ends first, and part."""
    by = ["layer", "part"] if "part" in table else ["layer"]
    return table.sort_values(
        by, key=lambda column: column.map(PARTS.index) if column.name == "part" else column
    ).reset_index(drop=True)


def inspect(
    base: str, sources: Sequence[str], names: Sequence[str], *, rank: bool | None = None
) -> Inspection:
    """Looks at a base and its sources, one tensor of each at a time; about one pass over the files.

    names: of the sources, in their order. rank: whether to compute effective ranks; by default on a
    GPU, and elsewhere of matrices with a side of up to 1024. UserError for a base that cannot be
    read; whatever is wrong with a source is a problem in the result.
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
            return _measured(open_models(recipe), tuple(names), rank)
        except UserError as error:
            problems = [str(error)]
    return _unmergeable(tuple(problems))


def _unmergeable(problems: tuple[str, ...]) -> Inspection:
    return Inspection(problems=problems, remarks=(), vectors=pd.DataFrame(), pairs=pd.DataFrame())


def _model(text: str) -> Model:
    path, _, revision = text.partition("@")
    return Model(path=path, revision=revision or None)


def _problems(models: dict[str, Model]) -> list[str]:
    """Every difference that headers and configurations show."""
    folders = {name: locate(model.path, model.revision) for name, model in models.items()}
    base = open_checkpoint(folders.pop(BASE))
    problems: list[str] = []
    for name, folder in folders.items():
        try:
            source = Adapter(folder, base) if is_adapter(folder) else open_checkpoint(folder)
            problems += differences(name, source, base)
        except UserError as error:
            problems.append(str(error))
    return problems


def _measured(models: Models, names: tuple[str, ...], rank: bool | None) -> Inspection:
    device = choose_device("auto")
    vectors: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    distances = dict.fromkeys(combinations(range(len(names)), 2), 0.0)
    wrong: dict[str, list[str]] = {}
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
        for name, operand in zip((BASE, *names), operands, strict=True):
            if not bool(operand.isfinite().all()):
                wrong.setdefault(name, []).append(slot.name)
        if wrong:
            models.forget()
            continue
        whole = inner_products(*operands)["gram"]
        gram = gram_of_deltas(whole)
        start = operands[0].float()
        deltas = [source.float() - start for source in operands[1:]]
        ranked = start.dim() == 2 and _ranked(start, rank)
        for i, name in enumerate(names):
            norm = max(0.0, float(gram[i, i])) ** 0.5
            row = {"source": name, "elements": start.numel(), "norm": norm}
            row |= {"base_norm": float(whole[0, 0]) ** 0.5, "stable_rank": _rank(deltas[i], norm)}
            effective = effective_rank(deltas[i].to(device)) if ranked else float("nan")
            row["effective_rank"] = effective
            vectors.append({**at, **row})
        for i, j in combinations(range(len(names)), 2):
            both = (deltas[i] != 0) & (deltas[j] != 0)
            opposed = both & ((deltas[i] > 0) != (deltas[j] > 0))
            length = float(gram[i, i].clamp(min=0) * gram[j, j].clamp(min=0)) ** 0.5
            product = float(gram[i, j])
            row = {"first": names[i], "second": names[j], "product": product}
            row["cosine"] = product / length if length else float("nan")
            pairs.append({**at, **row, "both": int(both.sum()), "opposed": int(opposed.sum())})
            distances[i, j] += int((deltas[i] != deltas[j]).sum())
        models.forget()
    if wrong:
        problems = tuple(f"{name}: {where_not_finite(own)}" for name, own in wrong.items())
        return _unmergeable(problems)
    found = pd.DataFrame(vectors)
    left_out = found[found["stable_rank"].notna() & found["effective_rank"].isna()]["tensor"]
    copies = [(names[i], names[j]) for (i, j), count in distances.items() if count == 0]
    return Inspection(
        problems=(),
        remarks=(
            *_remarks(found, pd.DataFrame(pairs), copies),
            *_left_out(left_out, rank),
            *_on_vocabularies(models.vocabularies),
        ),
        vectors=found,
        pairs=pd.DataFrame(pairs),
    )


def _ranked(tensor: torch.Tensor, rank: bool | None) -> bool:
    if rank is None:
        return min(tensor.shape) <= _QUICKLY_RANKED or torch.cuda.is_available()
    return rank


def _left_out(tensors: pd.Series, rank: bool | None) -> list[str]:
    """What to do about effective ranks that would have taken long."""
    if rank is not None or not len(tensors):
        return []
    return [
        f"effective rank: left out for {tensors.nunique()} matrices with more than "
        f"{_QUICKLY_RANKED} rows and columns; --rank computes it (4096 x 4096: up to half a minute "
        "per source on two CPU cores)"
    ]


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


def _on_vocabularies(found: Vocabularies | None) -> list[str]:
    """How the sources' vocabularies differ from the base's, and which `vocabulary` helps."""
    differences = {} if found is None else found.differences()
    remarks = [f"{name}: its vocabulary {each.sentence()}" for name, each in differences.items()]
    if found is None or not remarks:
        return remarks
    remarks.append(
        "rows of embeddings and head are matched by token; all figures are of the base's"
    )
    adding = [name for name, each in differences.items() if each.added]
    if adding:
        folders = found.folders
        try:
            read_vocabularies(folders, UNION)
            advice = "`vocabulary: union` keeps them all"
        except UserError as error:
            advice = f"no union: {error}".replace("vocabulary: union: ", "")
        remarks.append(
            "`vocabulary: base` (the default) leaves out what sources add; "
            f"{advice}; `vocabulary: {adding[0]}` takes that source's tokenizer"
        )
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

"""Rows of embeddings and heads, brought from each model's vocabulary into the merged model's."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.source import Checkpoint
from evomerge.checkpoints.tokenizer import Vocabularies
from evomerge.checkpoints.vocabulary import LACKS, check_fits, row_map
from evomerge.errors import UserError
from evomerge.merging.layout import Layout
from evomerge.recipe import BASE

_BESIDE = "embed_tokens_per_layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """How rows move, in tensors whose first dimension is the vocabulary."""

    tokens: int
    """Rows of the merged model that stand for tokens: its first ones."""
    total: int
    """Rows of the merged model, padding included."""
    base_tokens: int
    """The base's rows from this one on are padding."""
    maps: Mapping[str, torch.Tensor]
    """By model: int64 [tokens], its own row of each token, or LACKS. A model that is not here has
    the merged model's tokens in their order."""

    @property
    def digest(self) -> str:
        """Eight digits; what is computed of a tensor's rows holds for equal ones."""
        digest = hashlib.sha256(str(self.tokens).encode())
        for name, each in self.maps.items():
            digest.update(name.encode() + each.numpy().tobytes())
        return digest.hexdigest()[:8]

    def by_token(self, model: str, own: Mapping[str, Callable[[], torch.Tensor]]) -> torch.Tensor:
        """[tokens, ...]: the rows of a model, by the merged model's tokens.

        own: reads the tensor with its own rows, by model. A token that the model lacks takes the
        base's row, or, where the base lacks it too, the mean of the sources' that have it; the
        result is then float32.
        """
        tensor = own[model]()
        if model not in self.maps:
            return tensor[: self.tokens]
        places = self.maps[model].to(tensor.device)
        found = tensor[places.clamp(min=0)]
        lacks = (places == LACKS).nonzero().flatten()
        if not len(lacks):
            return found
        if model == BASE:
            rows = self._mean(lacks.cpu(), {n: read for n, read in own.items() if n != BASE})
        else:
            rows = self.by_token(BASE, own)[lacks.cpu()]
        return found.float().index_copy(0, lacks, rows.to(tensor.device, torch.float32))

    def _mean(
        self, tokens: torch.Tensor, own: Mapping[str, Callable[[], torch.Tensor]]
    ) -> torch.Tensor:
        """float32, on the CPU: of each token's rows the mean over the sources that have it."""
        total, count = torch.zeros(()), torch.zeros(())
        for name, read in own.items():
            places = self.maps[name][tokens] if name in self.maps else tokens
            has = places != LACKS
            rows = read()[places.clamp(min=0)].float().cpu()
            has = has.view(-1, *[1] * (rows.dim() - 1))
            total, count = total + rows.where(has, 0.0), count + has
        return total / count

    def padding(self, base: torch.Tensor) -> torch.Tensor:
        """The merged model's rows after those of tokens.

        base: the base's tensor with its own rows. Its padding stays where it is; the rest is 0.
        """
        padding = base.new_zeros(self.total - self.tokens, *base.shape[1:])
        start = max(self.tokens, self.base_tokens)
        kept = base[start : self.total]
        padding[start - self.tokens :][: len(kept)] = kept
        return padding


def read_rows(
    layout: Layout,
    models: Mapping[str, Checkpoint | Adapter],
    names: Mapping[str, Mapping[str, str]],
    vocabularies: Vocabularies | None,
) -> Rows | None:
    """The rows of one merge; None where all rows of all models are the merged model's tokens.

    layout: of the base. names: by model, from slots to its own names of tensors. UserError for a
    token without a row, and where no tokenizer tells which row is which token.
    """
    counts = {name: _count(name, models[name], names[name], layout) for name in models}
    for name, count in counts.items():
        if vocabularies is not None and name in vocabularies.own and layout.vocabulary:
            check_fits(f"{name} ({models[name].folder})", vocabularies.tokens[name], count)
        elif count != counts[BASE]:
            unknown = name if vocabularies is not None else BASE
            raise UserError(
                f"{name} ({models[name].folder}): another vocabulary? Its embeddings have {count} "
                f"rows, the base's {counts[BASE]}, and {unknown} has no tokenizer that tells which "
                "row is which token; copy it into its folder"
            )
    if vocabularies is None:
        return None
    result, base = vocabularies.result, vocabularies.tokens[BASE]
    maps = {
        name: torch.tensor(row_map(result, own))
        for name, own in vocabularies.tokens.items()
        if own[: len(result)] != result
    }
    beside = next((slot for slot in layout.slots if _BESIDE in slot), None)
    if maps and (beside or not layout.vocabulary):
        raise UserError(
            f"the vocabularies differ, and {beside or 'this architecture'} has rows that cannot be "
            "matched by token; expected sources with the base's vocabulary"
        )
    total = max(counts.get(vocabularies.wanted, counts[BASE]), len(result))
    if not layout.vocabulary or (not maps and {total, *counts.values()} == {len(result)}):
        return None
    return Rows(tokens=len(result), total=total, base_tokens=len(base), maps=maps)


def resized(layout: Layout, rows: int) -> Layout:
    """The layout with so many rows in the vocabulary's slots."""
    slots = {
        name: replace(slot, shape=(rows, *slot.shape[1:])) if name in layout.vocabulary else slot
        for name, slot in layout.slots.items()
    }
    return replace(layout, slots=slots)


def _count(name: str, model: Checkpoint | Adapter, names: Mapping[str, str], layout: Layout) -> int:
    """Rows of a model's embeddings; 0 where no slot is known to be the vocabulary's."""
    rows = {slot: model.tensors[names[slot]].shape[0] for slot in layout.vocabulary}
    if len(set(rows.values())) > 1:
        raise UserError(
            f"{name} ({model.folder}): rows of embeddings and head differ: {rows}; expected one "
            "for each token in all of them"
        )
    return next(iter(rows.values()), 0)

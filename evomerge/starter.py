"""A first configuration for models that someone has, written after looking at them."""

import re
from collections.abc import Sequence
from pathlib import Path

from evomerge.devices import choose_device, free_bytes
from evomerge.merging.models import open_models
from evomerge.recipe import BASE, Model, Recipe

_LONGEST = 100  # characters of a name: names become folders

_TEMPLATE = """\
# A search configuration of evomerge. Every key: configs/README.md. Look before you run:
#   evomerge check THIS_FILE
#   evomerge search THIS_FILE

# {count} models of the same shapes: {facts}
base: {base}
sources:
{sources}

# What a good merge is: tasks of lm-eval by name, or local ones with `folder:`.
tasks:
  arc_easy:               # replace by tasks that your models are for
    metric: acc_norm
    limit: 400            # documents, search and holdout together
  gsm8k:
    metric: exact_match
    num_fewshot: 4
    limit: 200

space:
  methods: [task_arithmetic]   # any of: {methods}
  depth: {depth}
  parts: together              # or separate: attention, mlp and norm get numbers of their own

budget:
  until: "07:00"               # or trials: 300, or hours: 8; the first that is reached

documents:
  holdout: 0.5                 # share that the search never sees

seed: 0
dtype: bfloat16
output: results/my_search      # relative to this file
"""


def starter_config(base: str, sources: Sequence[str]) -> str:
    """The text of a commented YAML file for these models; UserError where they cannot be merged."""
    from evomerge.methods import METHODS

    names = source_names(sources)
    recipe = Recipe(
        base=_model(base),
        sources={name: _model(path) for name, path in zip(names, sources, strict=True)},
        rules=(),
    )
    models = open_models(recipe)
    layers = models.stacks.depth
    size = models.bytes() / 2**30
    free = free_bytes(choose_device("auto")) / 2**30
    return _TEMPLATE.format(
        count=1 + len(sources),
        facts=f"{layers} layers, {size:.2f} GiB in all; {free:.0f} GiB of memory free here",
        base=_written(base),
        sources="\n".join(
            f"  {name}: {_written(path)}" for name, path in zip(names, sources, strict=True)
        ),
        methods=", ".join(METHODS),
        depth=f"{{blocks: {-(-layers // 6)}}}" if layers > 8 else "layers",
    )


def source_names(sources: Sequence[str]) -> list[str]:
    """Short distinct names from paths: their last component, numbered where it repeats."""
    names: list[str] = []
    for source in sources:
        last = Path(source.partition("@")[0]).name[:_LONGEST]
        stem = re.sub(r"[^\w.-]", "_", last).lstrip(".") or "source"
        name, number = stem, 2
        while name in names or name == BASE:
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    return names


def _model(text: str) -> Model:
    path, _, revision = text.partition("@")
    return Model(path=path, revision=revision or None)


def _written(text: str) -> str:
    """Local paths absolute, so that the file works wherever it is put."""
    folder = Path(text).expanduser()
    return str(folder.resolve()) if folder.exists() else text

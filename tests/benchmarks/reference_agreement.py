"""How far results are from the reference's, method by method, over every entry of every tensor.

    python -m tests.benchmarks.reference_agreement PYTHON
        [--out results/benchmarks/reference_agreement]    # PYTHON: one with mergekit 0.1.5

Two tables: `merge_tensors` of single tensors, called in that Python, beside this package's
`merge_tensor`; and complete merges by `mergekit-yaml`'s `run_merge` of the YAML of
tests/mergekit/cases.yaml, beside those that are read from the same YAML. All in float32 on the CPU.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.mergekit.correspondence import NAMES
from evomerge.mergekit.reading import from_mergekit
from evomerge.merging.models import open_models
from evomerge.merging.plan import merged_tensors
from evomerge.methods import METHODS
from evomerge.methods.apply import merge_tensor
from evomerge.methods.parameters import check_parameters
from evomerge.methods.statistics import TensorStatistics
from tests.mergekit.goldens import cases, in_float32
from tests.mergekit.reference import run_reference
from tests.mergekit.sources import make_sources

CLOSE = 1e-6
SHAPES = {"matrix 512 x 768": (512, 768), "vector 4096": (4096,), "matrix 37 x 53": (37, 53)}
"""The last has an odd number of entries, so that most densities keep no whole number of them."""
SOURCES = 3
WEIGHTS = [0.7, 0.2, 0.5]

ROUNDED = "a share of the entries is no whole number: rounded down there, to the nearest here"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of both: parameters by our names and by theirs."""

    method: str
    ours: Mapping[str, Any]
    theirs: Mapping[str, Any]
    with_base: bool = True
    sources: int = SOURCES


def _same(method: str, with_base: bool = True, sources: int = SOURCES, **given: Any) -> Call:
    weighted = "weight" in {row.name for row in METHODS[method].parameters}
    values = {**given, **({"weight": WEIGHTS[:sources]} if weighted else {})}
    values = {name.rstrip("_"): value for name, value in values.items()}
    return Call(method=method, ours=values, theirs=values, with_base=with_base, sources=sources)


def _nuslerp(with_base: bool, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Call:
    weight = {"weight": WEIGHTS[:2]}
    return Call(
        method="nuslerp",
        ours={**weight, "task_vectors": with_base, **ours},
        theirs={**weight, **theirs},
        with_base=with_base,
        sources=2,
    )


CALLS = (
    _same("linear", with_base=False),
    _same("linear", with_base=False, normalize=False),
    *(_same("slerp", with_base=False, sources=2, t=t) for t in (0.0, 0.3, 1.0)),
    _nuslerp(True, {}, {}),
    _nuslerp(False, {}, {}),
    _nuslerp(False, {"by_row": True}, {"nuslerp_flatten": False, "nuslerp_row_wise": False}),
    _nuslerp(False, {"by_column": True}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    _same("karcher", with_base=False, max_iter=50, tol=1e-9),
    _same("model_stock", filter_wise=False),
    _same("model_stock", filter_wise=True),
    _same("task_arithmetic", lambda_=0.8),
    *(_same("ties", density=d, normalize=n) for d in (0.25, 0.3, 1.0) for n in (True, False)),
    *(_same("breadcrumbs", density=d, gamma=g) for d, g in ((0.5, 0.25), (0.9, 0.01))),
    *(_same("breadcrumbs_ties", density=d, gamma=g) for d, g in ((0.5, 0.25), (0.9, 0.01))),
    *(_same("sce", select_topk=share) for share in (0.25, 0.3, 1.0)),
    _same("ram", epsilon=0.005),
    _same("ramplus", epsilon=0.005, r=0.5, alpha=0.4),
    _same("nearswap", sources=1, t=0.003),
)


REFERENCE = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from mergekit.merge_methods import merge_tensors
torch.set_num_threads(1)
operands = load_file(sys.argv[1])
made = {}
for call in json.load(open(sys.argv[2])):
    tensors = [operands[name] for name in call["operands"]]
    given = dict(parameters=call["parameters"])
    if call["base_index"] is not None:
        given["base_index"] = call["base_index"]
    made[call["name"]] = merge_tensors(tensors, call["method"], **given).contiguous()
save_file(made, sys.argv[3])
"""


def operands() -> dict[str, torch.Tensor]:
    """`SHAPE/number`: a base (number 0) and sources near it, by shape."""
    generator = torch.Generator().manual_seed(3)
    made = {}
    for name, shape in SHAPES.items():
        base = torch.randn(shape, generator=generator) * 0.02
        if len(shape) == 1:
            base = base + 1.0  # as weights of norms are
        made[f"{name}/0"] = base
        for number in range(1, SOURCES + 1):
            delta = torch.randn(shape, generator=generator) * 0.005
            made[f"{name}/{number}"] = base + delta
    return made


def calls_of_reference(python: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`SHAPE/CALL` -> what mergekit's merge_tensors makes."""
    asked = []
    for shape in SHAPES:
        for number, call in enumerate(CALLS):
            first = 0 if call.with_base else 1
            asked.append(
                {
                    "name": f"{shape}/{number}",
                    "method": {ours: theirs for theirs, ours in NAMES.items()}.get(
                        call.method, call.method
                    ),
                    "operands": [f"{shape}/{n}" for n in range(first, call.sources + 1)],
                    "parameters": dict(call.theirs),
                    "base_index": 0 if call.with_base or call.method == "slerp" else None,
                }
            )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        save_file(dict(tensors), work / "operands.safetensors")
        (work / "calls.json").write_text(json.dumps(asked))
        files = ("operands.safetensors", "calls.json", "made.safetensors")
        environment = {**os.environ, "PYTHONPATH": ""}
        subprocess.run(
            [python, "-c", REFERENCE, *(str(work / file) for file in files)],
            check=True,
            env=environment,
        )
        return load_file(work / "made.safetensors")


def tensor_rows(python: str) -> list[str]:
    """The table of single tensors."""
    tensors = operands()
    theirs = calls_of_reference(python, tensors)
    rows = []
    for number, call in enumerate(CALLS):
        method = METHODS[call.method]
        cells = []
        for shape in SHAPES:
            found = tuple(tensors[f"{shape}/{n}"] for n in range(call.sources + 1))
            parameters = check_parameters(method, call.ours, call.sources)
            statistics = TensorStatistics(operands=found)
            ours = merge_tensor(method, found[0], found[1:], parameters, statistics)
            cells.append(float((ours - theirs[f"{shape}/{number}"]).abs().max()))
        told = ", ".join(f"{k} {v}" for k, v in call.ours.items() if k != "weight")
        why = _why_of_call(call, cells)
        figures = " | ".join(f"{cell:.1e}" for cell in cells)
        rows.append(f"| {call.method} | {told} | {figures} | {why} |")
    return rows


def _why_of_call(call: Call, cells: Sequence[float]) -> str:
    if max(cells) <= CLOSE:
        return ""
    shares = [call.ours.get(key) for key in ("density", "gamma", "select_topk")]
    sizes = [torch.Size(shape).numel() for shape in SHAPES.values()]
    fractional = [
        any(share is not None and share * size % 1 > 1e-9 for share in shares) for size in sizes
    ]
    known = all(part or cell <= CLOSE for cell, part in zip(cells, fractional, strict=True))
    return ROUNDED if known else UNKNOWN


def merge_rows(python: str) -> list[str]:
    """The table of complete merges."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sources, work = Path(folder) / "sources", Path(folder) / "work"
        work.mkdir()
        make_sources(sources)
        contents = {name: in_float32(content) for name, content in cases("cases.yaml").items()}
        texts = {name: yaml.safe_dump(content) for name, content in contents.items()}
        theirs = run_reference(python, texts, sources, work)
        for name, content in contents.items():
            reference = theirs[name]
            if isinstance(reference, str):
                raise SystemExit(f"{name}: {reference}")
            recipe = from_mergekit(content, sources)
            ours = dict(merged_tensors(recipe, open_models(recipe)))
            assert set(ours) == set(reference), name
            worst = {n: float((ours[n] - reference[n]).abs().max()) for n in ours}
            where = max(worst, key=lambda n: worst[n])
            why = "" if worst[where] <= CLOSE else f"{where}: {UNKNOWN}"
            method = content["merge_method"]
            rows.append(f"| {method} | {name} | {len(ours)} | {worst[where]:.1e} | {why} |")
    return rows


PAGE = """\
# Agreement with mergekit 0.1.5

`python -m tests.benchmarks.reference_agreement PYTHON_WITH_MERGEKIT`, {date}, {machine}, torch
{torch}. Largest absolute difference over all entries; float32 on the CPU. Where it exceeds 1e-6,
the reason stands beside it.

The random masks of dare_linear, dare_ties, della and della_linear are others, so these four are not
compared. multislerp's log map there leaves out θ / sin θ; it is refused in mergekit files. Negative
weights in ties with `normalize` divide by Σ p there and by Σ |p| here; both directions refuse them.

## Single tensors, `merge_tensors`

A base (std 0.02; the vector around 1, as weights of norms are) and up to three sources (std 0.005
from it), weights {weights}. 37 · 53 is odd, so that most densities keep no whole number.

| method | parameters | {shapes} | why |
|---|---|{dashes}---|
{tensors}

## Complete merges of mergekit's YAML

All {count} merges of tests/mergekit/cases.yaml (names there), on float32 Llamas of 4 layers;
densities keep whole numbers of entries.

| method | merge | tensors | difference | where and why |
|---|---|---|---|---|
{merges}
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", help="a Python in which mergekit 0.1.5 is installed")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/reference_agreement"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    merges = merge_rows(arguments.python)
    page = PAGE.format(
        date=date.today(),
        machine=f"a {platform.machine()} CPU",
        torch=torch.__version__,
        weights=WEIGHTS,
        shapes=" | ".join(SHAPES),
        dashes="---|" * len(SHAPES),
        tensors="\n".join(tensor_rows(arguments.python)),
        count=len(merges),
        merges="\n".join(merges),
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "README.md").write_text(page)

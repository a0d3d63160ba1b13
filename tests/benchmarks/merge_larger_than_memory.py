"""Merges a family that is larger than memory and reports the resident memory it took.

    python tests/benchmarks/merge_larger_than_memory.py --layers 20 --folder SCRATCH
        --out results/benchmarks/larger_than_memory

Writes a base and two sources of random bfloat16 weights (a Llama of width 4096; 0.49 GB a layer,
and 0.52 GB of embeddings and head), merges them in a process of its own, and samples that process's
resident memory ten times a second. Needs four models' worth of disk, which it frees again.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import psutil
import torch
from transformers import LlamaConfig

from evomerge.checkpoints.writer import Spec, write_weights
from evomerge.recipe import Model, Recipe, Rule

GB = 1e9
HIDDEN, INNER, VOCABULARY = 4096, 14336, 32000


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"lm_head.weight": (VOCABULARY, HIDDEN)}
    found["model.embed_tokens.weight"] = (VOCABULARY, HIDDEN)
    for layer in range(layers):
        start = f"model.layers.{layer}"
        for name in "qkvo":
            found[f"{start}.self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        for name in ("gate", "up"):
            found[f"{start}.mlp.{name}_proj.weight"] = (INNER, HIDDEN)
        found[f"{start}.mlp.down_proj.weight"] = (HIDDEN, INNER)
        for name in ("input", "post_attention"):
            found[f"{start}.{name}_layernorm.weight"] = (HIDDEN,)
    found["model.norm.weight"] = (HIDDEN,)
    return found


def write_model(folder: Path, layers: int, seed: int) -> None:
    """A checkpoint of random weights, written tensor by tensor."""
    specs = {name: Spec(shape=s, dtype=torch.bfloat16) for name, s in shapes(layers).items()}
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2**24, generator=generator).mul_(0.02).to(torch.bfloat16)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for number, (name, spec) in enumerate(specs.items()):
            repeats = -(-(spec.bytes // 2) // len(noise))
            rolled = noise.roll(number * 7919).repeat(repeats)
            yield name, rolled[: spec.bytes // 2].view(spec.shape)

    folder.mkdir(parents=True)
    write_weights(folder, specs, tensors())
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    (folder / "config.json").write_text(json.dumps(config.to_dict()))


def merge(recipe: Path, out: Path) -> tuple[pd.DataFrame, float]:
    """Runs `evomerge merge`; its resident memory over time (seconds, GB), and the seconds."""
    command = [sys.executable, "-m", "evomerge", "merge", str(recipe), str(out)]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    watched, rows = psutil.Process(process.pid), []
    while process.poll() is None:
        try:
            rows.append((time.perf_counter() - start, watched.memory_info().rss / GB))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.1)
    assert process.wait() == 0
    return pd.DataFrame(rows, columns=["seconds", "resident_GB"]), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--folder", type=Path, required=True, help="a folder on a roomy disk")
    parser.add_argument("--methods", nargs="+", default=["task_arithmetic", "dare_ties", "ties"])
    parser.add_argument("--out", type=Path, required=True, help="where the table goes")
    arguments = parser.parse_args()
    scratch, layers = arguments.folder / "larger_than_memory", arguments.layers
    shutil.rmtree(scratch, ignore_errors=True)
    names = ("base", "one", "two")
    for seed, name in enumerate(names):
        write_model(scratch / name, layers, seed)
    size = sum(f.stat().st_size for f in scratch.rglob("*.safetensors")) / GB
    arguments.out.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(8, 4))
    rows = []
    for method in arguments.methods:
        recipe = Recipe(
            base=Model(path=str(scratch / "base")),
            sources={name: Model(path=str(scratch / name)) for name in names[1:]},
            rules=(Rule(method=method, sources=names[1:]),),
        )
        recipe.write(scratch / "recipe.yaml")
        trace, seconds = merge(scratch / "recipe.yaml", scratch / "merged")
        shutil.rmtree(scratch / "merged")
        trace[["seconds", "resident_GB"]].round(2).iloc[::5].to_csv(
            arguments.out / f"{method}.csv", index=False
        )
        axes.plot(trace["seconds"], trace["resident_GB"], label=method)
        rows.append((method, size, seconds, trace["resident_GB"].max()))
        print(rows[-1], flush=True)
    shutil.rmtree(scratch)
    axes.set(xlabel="seconds", ylabel="resident memory, GB", ylim=(0, None))
    axes.axhline(4, linestyle=":", color="grey")
    axes.legend()
    figure.savefig(arguments.out / "memory.png", dpi=110, bbox_inches="tight")
    lines = [
        "# A merge larger than memory",
        "",
        f"`python tests/benchmarks/merge_larger_than_memory.py --layers {layers}`, {date.today()}, "
        f"{psutil.cpu_count()} CPU cores, {psutil.virtual_memory().total / GB:.0f} GB of memory, "
        f"torch {torch.__version__}, {platform.machine()}.",
        "",
        "| method | base and sources, GB | seconds, hashes included | peak resident memory, GB |",
        "|---|---|---|---|",
        *(f"| {m} | {s:.1f} | {t:.0f} | {peak:.2f} |" for m, s, t, peak in rows),
        "",
        "![Resident memory over time](memory.png)",
        "",
        "Resident memory counts the memory-mapped pages of the sources that were read last, which "
        "are let go of every 0.27 GB. TIES counts the magnitudes of a tensor piece by piece, in "
        "no more memory than a piece and the counters.",
        "",
    ]
    (arguments.out / "README.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()

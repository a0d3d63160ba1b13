"""A candidate made by the reference program and by evomerge, in turns, on the same threads.

Used by merge_speed.py. The reference (mergekit 0.1.5) runs in a Python of its own, which keeps the
sources open and in memory, is asked for one merge at a time, and answers with its seconds.
"""

import json
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from evomerge.checkpoints.source import Checkpoint
from evomerge.methods import METHODS
from evomerge.methods.apply import Pass, chunked, merge_tensor
from evomerge.methods.parameters import check_parameters
from evomerge.methods.statistics import TensorStatistics

METHOD_NAMES = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "sce")
MODELS = ("base", "a", "b", "c")
WEIGHT, DENSITY = 0.4, 0.5
HIDDEN, INNER, VOCABULARY = 2048, 8192, 1024
ENOUGH_SECONDS, REPEATS = 10, 9
"""Each column is measured until one of both is reached."""

SERVER = """
import json, sys, time, torch
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.io.tasks import LoaderCache
from mergekit.merge import get_architecture_info, _model_out_config
from mergekit.merge_methods import merge_tensors
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from safetensors.torch import load_file

folder, threads, clock = sys.argv[1], int(sys.argv[2]), getattr(time, sys.argv[3])
torch.set_num_threads(threads)
models = [load_file(f"{folder}/{name}/model.safetensors") for name in ("base", "a", "b", "c")]
options = MergeOptions(copy_tokenizer=False, quiet=True)
LoaderCache().setup(options=options)

def tensors(method, given, dtype):
    used = models[1:] if method == "linear" else models
    base = {} if method == "linear" else {"base_index": 0}
    out = {"out_dtype": torch.bfloat16, "dtype": getattr(torch, dtype)}
    for name in models[0]:
        merge_tensors([m[name] for m in used], method, parameters=given, **base, **out)

def planned(method, given):
    base = {} if method == "linear" else {"base_model": f"{folder}/base"}
    text = {"merge_method": method, "dtype": "bfloat16", **base}
    text["models"] = [{"model": f"{folder}/{n}", "parameters": given} for n in ("a", "b", "c")]
    config = MergeConfiguration.model_validate(text)
    architecture = get_architecture_info(config, options)
    out = _model_out_config(config, architecture)
    planner = MergePlanner(config, architecture, options, out)
    planner._plan()  # as plan_in_memory, whose ReturnTensor pydantic 2.12 and newer refuses
    for _ in Executor([task for _, task in planner._tensors]).run(quiet=True):
        pass

for line in sys.stdin:
    how, method, given = json.loads(line)
    start = clock()
    planned(method, given) if how == "planned" else tensors(method, given, how)
    print(json.dumps(clock() - start), flush=True)
"""


def write_family(folder: Path) -> int:
    """A base and three sources of one Llama layer, bfloat16; returns the parameters of one."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    shapes["model.norm.weight"] = (HIDDEN,)
    start = "model.layers.0"
    shapes |= {f"{start}.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
    shapes |= {f"{start}.mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
    shapes[f"{start}.mlp.down_proj.weight"] = (HIDDEN, INNER)
    for name in ("input", "post_attention"):
        shapes[f"{start}.{name}_layernorm.weight"] = (HIDDEN,)
    generator = torch.Generator().manual_seed(0)
    base = {n: torch.randn(s, generator=generator) * 0.02 for n, s in shapes.items()}
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        vocab_size=VOCABULARY,
        num_hidden_layers=1,
        num_attention_heads=16,
        num_key_value_heads=16,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    for model in MODELS:
        tensors = {
            name: tensor
            if model == "base"
            else tensor + 0.002 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in base.items()
        }
        (folder / model).mkdir(parents=True)
        stored = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
        save_file(stored, folder / model / "model.safetensors", metadata={"format": "pt"})
        (folder / model / "config.json").write_text(json.dumps(config.to_dict()))
    return sum(tensor.numel() for tensor in base.values())


Ask = Callable[[str, str], float]
Clock = Callable[[], float]


@contextmanager
def reference(python: str, folder: Path, clock: Clock) -> Iterator[Ask]:
    """(how, method) -> seconds of the reference; how: a dtype of its arithmetic, or `planned`."""
    command = [python, "-c", SERVER, str(folder), str(torch.get_num_threads()), clock.__name__]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout

        def ask(how: str, method: str) -> float:
            given: dict[str, object] = {} if method == "sce" else {"weight": WEIGHT}
            if method in ("ties", "dare_linear", "dare_ties"):
                given["density"] = DENSITY
            process.stdin.write(json.dumps([how, method, given]) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return float(json.loads(process.stdout.readline()))  # type: ignore[union-attr]

        yield ask
        process.stdin.close()


class Ours:
    """The same candidates by evomerge, statistics known: from memory, or read from the files."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.clock = clock
        self.files = [Checkpoint(folder / name) for name in MODELS]
        self.held = {n: tuple(each.clone() for each in self.read(n)) for n in self.files[0].tensors}
        self.out = {name: torch.empty_like(each[0]) for name, each in self.held.items()}
        keys = tuple(range(10**9, 10**9 + len(MODELS) - 1))
        self.known = {n: TensorStatistics(operands=o, keys=keys) for n, o in self.held.items()}

    def read(self, name: str) -> tuple[torch.Tensor, ...]:
        return tuple(each.read(name) for each in self.files)

    def seconds(self, method_name: str, run: Pass, *, files: bool = False) -> float:
        method = METHODS[method_name]
        rows = {row.name for row in method.parameters}
        given = {"weight": WEIGHT, "density": DENSITY}
        parameters = check_parameters(
            method, {n: v for n, v in given.items() if n in rows}, len(MODELS) - 1
        )
        start = self.clock()
        for name, out in self.out.items():
            operands = self.read(name) if files else self.held[name]
            base, sources = operands[0], operands[1:]
            merge_tensor(method, base, sources, parameters, self.known[name], out=out, run=run)
        return self.clock() - start

    def copy_seconds(self) -> float:
        start = self.clock()
        for name, out in self.out.items():
            out.copy_(self.held[name][0])
        return self.clock() - start


def comparison(python: str, run: Pass, folder: Path, clock: Clock) -> list[str]:
    """The lines of a table in Markdown."""
    parameters = write_family(folder)
    ours = Ours(folder, clock)
    print(f"beside the reference: {parameters / 1e6:.0f} million parameters", flush=True)
    lines = [
        f"One candidate of {parameters / 1e6:.0f} million parameters in {len(ours.out)} tensors, "
        f"three sources, bfloat16, in seconds; {torch.get_num_threads()} threads for either; the "
        f"columns are measured in turns, medians of {REPEATS}, or of as many as {ENOUGH_SECONDS} s "
        "allow. bf16 and fp32: `merge_tensors` alone, on tensors "
        "in memory; bf16 is what a recipe with `dtype: bfloat16` computes in. planned: the "
        "recipe's plan made and executed in memory, as mergekit-evolve does for each candidate, "
        "reading from the page cache. evomerge computes in float32. ratio: bf16 to evomerge in "
        "memory, planned to evomerge from files. At a copy's speed: what the first ratio would be "
        "if a candidate were as fast as copying its operands, the most that memory allows.",
        "",
        "| method | bf16 | fp32 | planned | evomerge, in memory | from files | op by op | "
        "ratio in memory | ratio from files | share of a copy | at a copy's speed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    with reference(python, folder, clock) as ask:
        for method in METHOD_NAMES:
            columns: list[Callable[[], float]] = [
                lambda m=method: ask("bfloat16", m),  # type: ignore[misc]
                lambda m=method: ask("float32", m),  # type: ignore[misc]
                lambda m=method: ask("planned", m),  # type: ignore[misc]
                lambda m=method: ours.seconds(m, run),  # type: ignore[misc]
                lambda m=method: ours.seconds(m, run, files=True),  # type: ignore[misc]
                lambda m=method: ours.seconds(m, chunked),  # type: ignore[misc]
                ours.copy_seconds,
            ]
            for files in (False, True):  # compiles, and computes the statistics
                ours.seconds(method, run, files=files)
            times: list[list[float]] = [[] for _ in columns]
            for _ in range(REPEATS):
                for column, found in zip(columns, times, strict=True):
                    if sum(found) < ENOUGH_SECONDS:
                        found.append(column())
            bf16, fp32, planned, memory, files, plain, copy = map(statistics.median, times)
            share = (len(MODELS) + METHODS[method].needs_base) / 2 * copy / memory
            lines.append(
                f"| {method} | {bf16:.3f} | {fp32:.3f} | {planned:.3f} | {memory:.4f} | "
                f"{files:.4f} | {plain:.3f} | {bf16 / memory:.0f} | {planned / files:.0f} | "
                f"{share:.0%} | {bf16 / memory / share:.0f} |"
            )
            print(lines[-1], flush=True)
    return lines

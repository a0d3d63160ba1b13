"""Other programs that search for merges, on a family of search_methods.py, beside evomerge.

    python -m tests.benchmarks.search_peers --family FOLDER/damaged --out FOLDER
        [--mergekit BIN] [--mergenetic PYTHON] [--candidates 36] [--more 200] [--seed 0]

Each program comes from an environment of its own:

    python -m venv E && E/bin/pip install torch "mergekit[evolve]==0.1.5"             # BIN: E/bin
    python -m venv G && G/bin/pip install torch mergenetic==0.1.1 && G/bin/pip install "pyarrow<20"
                                                                           # PYTHON: G/bin/python

All search on the same documents, the search side of evomerge's split, and may score so many
candidates in full; the holdout side judges what they export, and evomerge scores it.

mergekit-evolve runs in its `serial` strategy with lm-eval's hf evaluator. Without a GPU
it is given: tasks without a chat template; a Ray cluster that is told of one GPU, for it asks for
one per candidate; a stand-in for lm-eval's vLLM module, which it imports in any case; and the CPU
as the device of lm-eval's models. What mergenetic is given stands in peer_mergenetic.py.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from evomerge.assemble import Bench, prepare
from evomerge.checkpoints.hashes import HashCache
from evomerge.config import load_config
from evomerge.recipe import BASE
from evomerge.scoring.scorecard import Scorecard
from evomerge.searching.baselines import whole
from evomerge.verbs import score
from tests.benchmarks.search_methods import configuration, run_evomerge
from tests.benchmarks.tables import table

Row = dict[str, float]
_PORT = 6399  # of the local Ray cluster
_RAY_STARTS = 20.0  # seconds
_STAND_INS = """\
import sys

if any("mergekit-evolve" in word or "default_worker" in word for word in sys.orig_argv):
    import types

    import lm_eval.models
    from lm_eval.models.huggingface import HFLM

    name = "lm_eval.models.vllm_causallms"
    module = types.ModuleType(name)
    module.VLLM = type("VLLM", (), {})
    sys.modules[name] = lm_eval.models.vllm_causallms = module
    defaults = HFLM.__init__.__defaults__
    HFLM.__init__.__defaults__ = tuple("cpu" if x == "cuda" else x for x in defaults)
"""


def write_tasks(family: Path, folder: Path, documents: Mapping[str, Sequence[int]]) -> None:
    """Copies the family's tasks with these documents alone, and paths that hold anywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, numbers in documents.items():
        lines = (family / "tasks" / f"{task}.jsonl").read_text().splitlines(keepends=True)
        own = folder / f"{task}.jsonl"
        own.write_text("".join(lines[number] for number in sorted(numbers)))
        content = yaml.safe_load((family / "tasks" / f"{task}.yaml").read_text())
        content["dataset_kwargs"]["data_files"] = {"test": str(own)}
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def genome(bench: Bench) -> dict[str, Any]:
    """mergekit-evolve's configuration of the same search: a weight per source and layer."""
    targets = bench.goal.points.targets
    return {
        "genome": {
            "models": [model.path for model in bench.template.sources.values()],
            "base_model": bench.template.base.path,
            "merge_method": "task_arithmetic",
            "layer_granularity": 1,
        },
        "tasks": [
            {"name": task, "weight": share, "metric": targets[task].metric}
            for task, share in bench.goal.points.shares().items()
        ],
        "num_fewshot": 0,
        "apply_chat_template": False,
        "fewshot_as_multiturn": False,
    }


@contextmanager
def ray_with_a_gpu(binaries: Path, out: Path) -> Iterator[Mapping[str, str]]:
    """A Ray cluster of this machine alone that believes in a GPU; the environment to use it in."""
    own = out / "environment"
    own.mkdir(exist_ok=True)
    (own / "sitecustomize.py").write_text(_STAND_INS)
    environment = {**os.environ, "PYTHONPATH": str(own), "OMP_NUM_THREADS": "1"}
    words = [str(binaries / "ray"), "start", "--head", "--block", f"--port={_PORT}"]
    words += ["--num-gpus=1", "--num-cpus=4", "--include-dashboard=false"]
    with (out / "ray.txt").open("w") as file:
        process = subprocess.Popen(
            words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        try:
            time.sleep(_RAY_STARTS)
            yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{_PORT}"}
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def run_mergekit(bench: Bench, arguments: argparse.Namespace, tasks: Path) -> Row:
    """mergekit-evolve, to its final model."""
    out: Path = (arguments.out / "mergekit").resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "genome.yaml").write_text(yaml.safe_dump(genome(bench), sort_keys=False))
    words = [str(arguments.mergekit / "mergekit-evolve"), str(out / "genome.yaml")]
    words += ["--storage-path", str(out / "storage"), "--task-search-path", str(tasks)]
    words += ["--strategy", "serial", "--no-merge-cuda", "--num-gpus", "1", "--batch-size", "64"]
    words += ["--max-fevals", str(arguments.candidates), "--random-seed", str(arguments.seed)]
    with ray_with_a_gpu(arguments.mergekit, out) as environment, (out / "log.txt").open("w") as log:
        start = time.perf_counter()
        subprocess.run(
            words, stdout=log, stderr=subprocess.STDOUT, check=True, env=environment, cwd=out
        )  # cma writes its own files where it runs
        seconds = time.perf_counter() - start
    generations = re.findall(r"Received (\d+) genotypes", (out / "log.txt").read_text())
    model = out / "storage" / "final_model"
    points = judged(bench, score(model, bench.loaded, side="holdout"))
    return {"candidates": sum(map(int, generations)), "seconds": seconds, "points": points}


def run_mergenetic(bench: Bench, arguments: argparse.Namespace, tasks: Path) -> Row:
    """mergenetic with a genetic algorithm over one weight per source."""
    out: Path = (arguments.out / "mergenetic").resolve()
    shares, targets = bench.goal.points.shares(), bench.goal.points.targets
    models = {BASE: bench.template.base, **bench.template.sources}
    paths = {name: older_tokenizer(Path(m.path), out / "models") for name, m in models.items()}
    asked = {
        "out": str(out),
        "base": paths.pop(BASE),
        "sources": paths,
        "tasks": str(tasks),
        "targets": {t: {"metric": targets[t].metric, "share": shares[t]} for t in targets},
        "candidates": arguments.candidates,
        "seed": arguments.seed,
    }
    (out / "asked.json").write_text(json.dumps(asked, indent=1))
    script = Path(__file__).with_name("peer_mergenetic.py")
    words = [str(arguments.mergenetic), str(script), str(out / "asked.json")]
    with (out / "log.txt").open("w") as log:
        subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, check=True)
    found = json.loads((out / "found.json").read_text())
    names = tuple(bench.template.sources)
    recipe = whole(bench.template, "task_arithmetic", names, weight=found["weights"])
    points = judged(bench, score(recipe, bench.loaded, side="holdout"))
    return {"candidates": found["candidates"], "seconds": found["seconds"], "points": points}


def older_tokenizer(model: Path, folder: Path) -> str:
    """A copy of a model whose tokenizer transformers 4 can load too."""
    copy = folder / model.name
    shutil.copytree(model, copy, dirs_exist_ok=True)
    path = copy / "tokenizer_config.json"
    content = {**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(content))
    return str(copy)


def judged(bench: Bench, card: Scorecard) -> float:
    """Points of the tasks' own metrics."""
    return 100 * bench.goal.points.value(bench.goal.points.metrics(card))


def run_own(bench: Bench, arguments: argparse.Namespace, candidates: int) -> Row:
    """evomerge with its defaults, on as many documents as so many candidates scored in full."""
    cost = sum(map(len, bench.documents("search").values()))
    found = run_evomerge(bench.loaded, candidates)
    spent = sum(found["documents"].values()) / cost
    return {"candidates": spent, "seconds": found["seconds"], "points": found["points"]}


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_PLAIN)
    parser.add_argument("--family", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mergekit", type=Path, help="the bin folder of its environment")
    parser.add_argument("--mergenetic", type=Path, help="the Python of its environment")
    parser.add_argument("--candidates", type=int, default=36)
    parser.add_argument(
        "--more", type=int, default=200, help="candidates' worth for evomerge alone"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    family, seed = arguments.family.resolve(), arguments.seed
    content = configuration(family, {"seed": seed, "documents.seed": seed})
    (out / "family.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    bench = prepare(load_config(out / "family.yaml"), HashCache(out / "family.hashes"))
    write_tasks(family, out / "tasks", bench.documents("search"))
    runs: dict[str, Callable[[], Row]] = {
        "evomerge": lambda: run_own(bench, arguments, arguments.candidates),
        "evomerge, longer": lambda: run_own(bench, arguments, arguments.more),
    }
    if arguments.mergekit:
        runs["mergekit-evolve"] = lambda: run_mergekit(bench, arguments, out / "tasks")
    if arguments.mergenetic:
        runs["mergenetic"] = lambda: run_mergenetic(bench, arguments, out / "tasks")
    rows = []
    for name, run in runs.items():
        path = out / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(run(), indent=1))
        found = json.loads(path.read_text())
        each = found["seconds"] / found["candidates"]
        cells = [f"{found['candidates']:.0f}", f"{found['seconds']:.0f}", f"{each:.2f}"]
        rows.append([name, *cells, f"{found['points']:.1f}"])
    head = ["", "candidates scored in full, or their worth", "seconds", "seconds per candidate"]
    print(table([*head, "points on the holdout"], rows))


_PLAIN = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()

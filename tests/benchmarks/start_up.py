"""How long a search waits for its tasks: the first start, and every later one.

    python tests/benchmarks/start_up.py [--repeats 3] [--tokenizer FOLDER] [--clock process_time]

Prints a Markdown table. Every start is a process of its own, after imports; "first" has an empty
cache of evomerge's, "later" the one that the first left. What the datasets library prepares once
per file is there in both. Ready: the harness is built, and texts are tokens. For the latter, all
documents are scored twice by a model of next to no size, and only the difference counts. For a
task that comes with lm-eval, the clock stops where its data would be downloaded.
"""

import argparse
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from evomerge.errors import UserError
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.harness import Harness
from evomerge.scoring.scorer import score_blocks
from evomerge.scoring.tasks import TaskRequest

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart"
FAMILY = ("capital", "dial", "past", "sort7")
CASES = {
    "quickstart's four tasks": [*FAMILY],
    "2,000 documents, 5 examples, 4 choices": ["both_ways"],
    "the name `mmlu`, up to its data": ["mmlu"],
}
DOCUMENTS, EXAMPLES = 2000, 5


def write_task(folder: Path) -> None:
    """Quickstart's questions and answers, each asked both ways round, with three wrong choices."""
    generator = random.Random(0)
    rows = []
    for name in FAMILY:
        lines = (QUICKSTART / "tasks" / f"{name}.jsonl").read_text().splitlines()
        known = [(row["question"].split(" ", 1)[1], answer(row)) for row in map(json.loads, lines)]
        for asked, given in ((0, 1), (1, 0)):
            for pair in known:
                others = [one[given] for one in known if one[given] != pair[given]]
                choices = [pair[given], *generator.sample(others, 3)]
                rows.append({"question": pair[asked], "choices": choices, "answer": 0})
    generator.shuffle(rows)
    content = "".join(json.dumps(row) + "\n" for row in rows[:DOCUMENTS])
    (folder / "both_ways.jsonl").write_text(content)
    task = {
        "task": "both_ways",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "both_ways.jsonl"}},
        "test_split": "test",
        "fewshot_split": "test",
        "num_fewshot": EXAMPLES,
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "both_ways.yaml").write_text(yaml.safe_dump(task))


def answer(row: dict[str, Any]) -> str:
    return str(row["choices"][row["answer"]] if "choices" in row else row["answer"])


def measure(names: list[str], folder: Path, tokenizer_folder: Path, clock: str) -> list[float]:
    """Seconds until the harness stands, until all documents are scored, and scored once more."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    now = getattr(time, clock)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    ).eval()
    folders = {"mmlu": None, "both_ways": folder}
    requests = [
        TaskRequest(name=name, folder=folders.get(name, QUICKSTART / "tasks")) for name in names
    ]
    seconds = [now()]
    try:
        harness = Harness(requests, tokenizer, budget=BatchBudget(2048))
    except UserError as error:
        if "no connection" not in str(error):
            raise
        return [now() - seconds[0], 0.0, 0.0]
    seconds.append(now())
    documents = {name: range(len(harness.documents(name))) for name in harness.tasks}
    for _ in range(2):
        score_blocks(harness, model, [documents])
        seconds.append(now())
    return [after - before for before, after in pairwise(seconds)]


def start(case: str, cache: Path, work: Path, arguments: argparse.Namespace) -> list[float]:
    """`measure` in a process of its own."""
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(cache),
        "HF_HOME": str(work / "hugging_face"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, "--case", case, "--folder", str(work)]
    command += ["--tokenizer", str(arguments.tokenizer), "--clock", arguments.clock]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(run.stderr)
    found: list[float] = json.loads(run.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokenizer", type=Path, default=QUICKSTART / "models" / "base")
    parser.add_argument("--clock", default="perf_counter", choices=("perf_counter", "process_time"))
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        own = (arguments.folder, arguments.tokenizer, arguments.clock)
        print(json.dumps(measure(CASES[arguments.case], *own)))
        return
    print("| tasks | start | harness, s | tokens, s | ready, s | kept, MB |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as text:
        work = Path(text)
        write_task(work)
        for case in CASES:
            start(case, work / "unused", work, arguments)  # the datasets library prepares its files
            found: dict[str, list[list[float]]] = {"first": [], "later": []}
            for number in range(arguments.repeats):
                cache = work / f"{len(case)}-{number}"
                for rows in found.values():
                    rows.append(start(case, cache, work, arguments))
            kept = sum(path.stat().st_size for path in cache.rglob("*.*") if path.is_file()) / 1e6
            for kind, rows in found.items():
                harness = statistics.median(row[0] for row in rows)
                tokens = statistics.median(max(0.0, row[1] - row[2]) for row in rows)
                numbers = f"{harness:.2f} | {tokens:.2f} | {harness + tokens:.2f} | {kept:.2f}"
                print(f"| {case} | {kind} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()

"""Searches of the quickstart's models with a real scorer that is slowed down to the time that a
trial takes on large models, so that this machine's cores are not the limit."""

from pathlib import Path

import yaml

FAMILY = Path(__file__).parent.parent.parent / "configs" / "quickstart"

SCORER = '''\
"""The mean log-probability of each document's tokens, and a pause."""

import time

import torch

SECONDS = {seconds}


def score(model, tokenizer, documents):
    begun = time.monotonic()
    found = []
    for document in documents:
        text = document["question"] + " " + document["answer"]
        tokens = torch.tensor([tokenizer.encode(text)])
        logits = model(input_ids=tokens.to(model.device)).logits.float().log_softmax(-1)
        found.append(logits[0, :-1].gather(1, tokens[0, 1:, None].to(model.device)).mean().item())
    time.sleep(max(0.0, SECONDS - (time.monotonic() - begun)))
    return found
'''


def write_config(
    folder: Path,
    seconds: float,
    budget: dict[str, float],
    documents: int = 24,
    models: dict[str, str] | None = None,
) -> Path:
    """A configuration in a folder of its own. seconds: that scoring a candidate takes at least, if
    one pass over its search documents takes less. models: `base` and the sources, instead of the
    quickstart's."""
    if models is None:
        names = ("base", "dial", "past", "capital")
        models = {name: str(FAMILY / "models" / name) for name in names}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "slow_scorer.py").write_text(SCORER.format(seconds=seconds))
    lines = (FAMILY / "tasks" / "past.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "documents.jsonl").write_text("\n".join(lines[: 2 * documents]) + "\n")
    content = {
        "base": models["base"],
        "sources": {name: path for name, path in models.items() if name != "base"},
        "tasks": {"past": {"scorer": "slow_scorer:score", "documents": "documents.jsonl"}},
        "space": {"methods": ["task_arithmetic", "ties"], "choose": "group", "depth": "layers"},
        "budget": budget,
        "early_stopping": False,
        "finalists": 1,
        "dtype": "float32",
        "threads": 1,
        "allow_code": True,
        "output": "run",
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path

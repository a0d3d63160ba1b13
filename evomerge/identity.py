"""What makes the scores of one study comparable with those of another search."""

import dataclasses
import hashlib
import json
from typing import Any

from evomerge.assemble import Bench
from evomerge.config import SpaceConfig
from evomerge.recipe import BASE
from evomerge.scorers import requests, sources, tasks_of


def identity(bench: Bench) -> dict[str, Any]:
    """The facts that make scores of one study comparable; equal ones may go on with it."""
    config = bench.loaded.config
    texts = {task: bench.scorer.documents(task) for task in bench.splits}
    documents = {
        task: {
            "count": len(own),
            "sha256": hashlib.sha256("\n".join(own).encode()).hexdigest()[:16],
        }
        for task, own in texts.items()
    }
    facts = {
        "models": {
            name: bench.template.model(name).sha256 for name in (BASE, *bench.template.sources)
        },
        "tasks": {
            name: _plain(task, without=("folder", "file", "documents"))
            for name, task in tasks_of(bench.loaded).items()
        },
        "documents": _plain(config.documents) | {"tasks": documents},
        "space": _space(config.space),
        "starts": {name: recipe.fingerprint() for name, recipe in bench.space.starts().items()},
        "sampler": config.sampler,
        "seed": config.seed,
        "dtype": bench.template.dtype,
        "batch_tokens": config.batch_tokens,
        "objective": bench.goal.kind,
        # Batches are filled within a block, and the last digits depend on them.
        "blocks": len(bench.blocks("search")),
    }
    # Left out where they are as runs without them have it.
    if bench.goal.normalise != "raw":
        facts["normalise"] = bench.goal.normalise
    if bench.goal.several:
        facts["objectives"] = bench.goal.parts
    if bench.goal.constraints:
        facts["constraints"] = {each.task: each.sentence() for each in bench.goal.constraints}
    if bench.models.digest is not None:
        facts["vocabulary"] = f"{config.vocabulary} {bench.models.digest}"
    if bench.template.calibration is not None:
        facts["calibration"] = _plain(bench.template.calibration, without=("file",))
    if code := sources(bench.loaded):
        facts["code"] = code
    if config.generation != "own":
        facts["generation"] = config.generation
    result: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return result


def _space(space: SpaceConfig) -> dict[str, Any]:
    return _plain(space, without=() if space.switch_off else ("switch_off",))


def asked(bench: Bench) -> dict[str, Any]:
    """Task -> how it is asked, as the stock lm_eval command needs to be told; of tasks that are
    not lm-eval's, only the scorer."""
    others = {n: {"scorer": t.scorer} for n, t in tasks_of(bench.loaded).items() if t.scorer}
    return others | {
        request.name: {
            "folder": None if request.folder is None else str(request.folder.resolve()),
            "num_fewshot": request.num_fewshot,
            "chat_template": request.chat_template,
            "system_instruction": request.system_instruction,
            "dtype": bench.template.dtype,
        }
        for request in requests(bench.loaded)
    }


def _plain(value: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    return {key: v for key, v in dataclasses.asdict(value).items() if key not in without}

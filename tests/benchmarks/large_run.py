"""Writes the run folder of a search that never was, as large as one asks, in the format of one.

Scores and coefficients are random numbers: it is for measuring readers, not for looking at.
"""

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from evomerge.recipe import Model, Recipe, Rule
from evomerge.scoring.scorecard import SMOOTH, DocumentScores, Metric, to_json, write_documents
from evomerge.searching.journal import RunJournal
from evomerge.searching.objective import Goal, Objective, Target
from evomerge.searching.record import FINGERPRINT, RECIPE, RESULT, WORKER
from evomerge.searching.run_folder import RunFolder
from evomerge.searching.study import HISTORY, TASKS, open_study, write_goal

_BATCH = 200  # trials that are written in one piece
_METRIC = "acc,none"


def write_large_run(
    path: Path,
    *,
    trials: int,
    layers: int,
    sources: int,
    tasks: int,
    documents: int,
    scored: int,
    seed: int = 0,
) -> None:
    """A finished search over layers · sources weights. scored: of how many trials, the last ones,
    the scores per document are written."""
    folder = RunFolder(path)
    (path / "search").mkdir(parents=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = [f"task {number}" for number in range(tasks)]
    study = open_study(folder.storage(None), {})
    study.set_user_attr(TASKS, {name: {"folder": None} for name in names})
    study.set_user_attr(HISTORY, [{"started": datetime.now(UTC).isoformat(), "host": "none"}])
    targets = {name: Target(metric=_METRIC) for name in names}
    write_goal(study, Goal(kind="metric", points=Objective(targets=targets)))
    random = np.random.default_rng(seed)
    models = {f"source {number}": Model(path=f"models/{number}") for number in range(sources)}
    journal = RunJournal(folder.journal)
    for first in range(0, trials, _BATCH):
        rows: list[dict[str, Any]] = []
        for number in range(first, min(first + _BATCH, trials)):
            weights = random.uniform(0, 1.2, (layers, sources))
            values = np.clip(random.normal(0.5, 0.05) + random.normal(0, 0.1, tasks), 0, 1)
            rows += _trial(number, models, weights, dict(zip(names, values, strict=True)))
        journal.append_logs(rows)
    for number in range(trials - scored, trials):
        scores = {
            name: DocumentScores(
                documents=tuple(range(documents)),
                values={
                    _METRIC: tuple(random.integers(0, 2, documents).tolist()),
                    SMOOTH: tuple(random.normal(-1, 0.3, documents).tolist()),
                },
            )
            for name in names
        }
        write_documents(scores, folder.documents("search", number))


def _trial(
    number: int, models: dict[str, Model], weights: Any, values: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """The journal's entries of one trial, as a search writes them."""
    worker = f"{uuid.UUID(int=0)}-1"
    begun = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=3 * number)
    yield {
        "op_code": 4,
        "worker_id": worker,
        "study_id": 0,
        "datetime_start": begun.isoformat(),
    }
    kind = json.dumps(
        {
            "name": "FloatDistribution",
            "attributes": {"step": None, "low": 0.0, "high": 1.2, "log": False},
        }
    )
    for layer, row in enumerate(weights.tolist()):
        for source, weight in zip(models, row, strict=True):
            yield {
                "op_code": 5,
                "worker_id": worker,
                "trial_id": number,
                "param_name": f"layers {layer}/weight/{source}",
                "param_value_internal": weight,
                "distribution": kind,
            }
    rules = tuple(
        Rule(
            method="task_arithmetic",
            sources=tuple(models),
            layers=(layer,),
            parameters={"weight": dict(zip(models, row, strict=True)), "lambda": 1.0},
        )
        for layer, row in enumerate(weights.tolist())
    )
    recipe = Recipe(base=Model(path="models/base"), sources=models, rules=rules)
    metrics = [
        Metric(
            task=task,
            name=name,
            value=float(value if name == _METRIC else np.log(max(value, 0.01))),
            standard_error=0.007,
            documents=5000,
            higher_is_better=True,
        )
        for task, value in values.items()
        for name in (_METRIC, SMOOTH)
    ]
    value = float(np.mean(list(values.values())))
    result = {
        "value": value,
        "metrics": to_json(metrics),
        "answers": {},
        "documents": {"metric": 5000 * len(values)},
        "share": 1.0,
        "seconds": {"propose": 0.05, "merge": 0.2, "model": 2.5, "metric": 0.2, "record": 0.05},
        "remarks": [],
    }
    stamp = {"host": "none", "pid": 1, "started": begun.isoformat(timespec="seconds")}
    attributes = {
        RECIPE: recipe.to_json(),
        FINGERPRINT: f"{number:016x}",
        WORKER: stamp,
        RESULT: result,
    }
    for name, content in attributes.items():
        yield {
            "op_code": 8,
            "worker_id": worker,
            "trial_id": number,
            "user_attr": {name: content},
        }
    yield {
        "op_code": 6,
        "worker_id": worker,
        "trial_id": number,
        "state": 1,
        "values": [value],
        "datetime_complete": (begun + timedelta(seconds=3)).isoformat(),
    }

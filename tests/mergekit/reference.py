"""Runs mergekit in a Python of its own, and brings back what it made."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

RUNNER = Path(__file__).with_name("run_reference.py").resolve()

Tensors = dict[str, torch.Tensor]


def run_reference(
    python: str, texts: Mapping[str, str], sources: Path, work: Path
) -> dict[str, Tensors | str]:
    """Name -> tensors of the merge whose YAML `texts` holds, or mergekit's error message.

    sources: the folder that model names are relative to. work: an empty folder for results.
    """
    jobs = []
    for number, text in enumerate(texts.values()):
        file, out = work / f"{number}.yml", work / str(number)
        file.write_text(text)
        jobs.append({"yaml": str(file.resolve()), "out": str(out.resolve())})
    (work / "jobs.json").write_text(json.dumps(jobs))
    subprocess.run(
        [python, str(RUNNER), str((work / "jobs.json").resolve())],
        cwd=sources,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    results: dict[str, Tensors | str] = {}
    for name, job in zip(texts, jobs, strict=True):
        error = Path(job["out"] + ".error")
        if error.exists():
            results[name] = error.read_text().strip().splitlines()[-1]
        else:
            results[name] = load_file(Path(job["out"]) / "model.safetensors")
    return results

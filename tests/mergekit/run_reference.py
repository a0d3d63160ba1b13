"""Merges with mergekit 0.1.5, in a Python that has it (`pip install mergekit==0.1.5`):

    PYTHON tests/mergekit/run_reference.py JOBS.json

JOBS.json: a list of {"yaml": FILE, "out": FOLDER}; models are named relative to the working folder.
A merge that fails leaves FOLDER.error, with its last line. Calls its public functions only.
"""

import json
import sys
import traceback
from pathlib import Path

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from mergekit.scripts.multimerge import main as multi


def merge(file: Path, out: Path) -> None:
    """One merge, or several that build on each other."""
    documents = list(yaml.safe_load_all(file.read_text()))
    if len(documents) > 1:
        arguments = [str(file), "--out-path", str(out), "-I", f"{out}-between", "--quiet"]
        multi.main(
            args=[*arguments, "--clone-tensors", "--no-write-model-card"], standalone_mode=False
        )
        return
    configuration = MergeConfiguration.model_validate(documents[0])
    options = MergeOptions(quiet=True, clone_tensors=True, write_model_card=False)
    run_merge(configuration, str(out), options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        try:
            merge(Path(job["yaml"]), Path(job["out"]))
        except Exception:  # noqa: BLE001 - told to whoever reads the results
            Path(job["out"] + ".error").write_text(traceback.format_exc())

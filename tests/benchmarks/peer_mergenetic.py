"""mergenetic on one family: run by search_peers.py with the Python of mergenetic's environment.

Its evaluator for lm-eval's tasks needs vLLM on a GPU. Here the problem is stated as its
documentation says for one's own metrics, and scored by lm-eval's hf evaluator on the CPU. Its
merger always asks mergekit to keep tensors on a GPU, which is refused here.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from mergekit.merge import MergeOptions
from mergenetic.merging import TaskArithmeticMerger, merger
from mergenetic.optimization import MergingProblem
from mergenetic.searcher import Searcher
from pymoo.algorithms.soo.nonconvex.ga import GA

POPULATION = 12


class Problem(MergingProblem):
    """Minus the weighted mean of the tasks' metrics."""

    def __init__(self, tasks: Path, targets: dict[str, Any], **kwargs: Any) -> None:
        self.tasks = TaskManager(include_path=str(tasks))
        self.targets = targets
        super().__init__(search_df=None, **kwargs)

    def metrics_4_genotype(self, model: Any, tokenizer: Any = None) -> tuple[list[float], None]:
        """Scores a candidate on every document of the tasks."""
        evaluator = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=64, device="cpu")
        found = simple_evaluate(
            evaluator, tasks=list(self.targets), task_manager=self.tasks, log_samples=False
        )["results"]
        value = sum(
            target["share"] * found[t][target["metric"]] for t, target in self.targets.items()
        )
        return [-value], None

    def test(self) -> None:
        """Not asked for: the holdout is scored elsewhere."""
        raise NotImplementedError


def _on_the_cpu(**options: Any) -> MergeOptions:
    return MergeOptions(**{**options, "low_cpu_memory": False})


def main() -> None:
    """Reads what is asked from a JSON file, and prints the weights and the seconds as JSON."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    out = Path(asked["out"])
    sources = asked["sources"]
    merger.MergeOptions = _on_the_cpu
    own = TaskArithmeticMerger(
        run_id="run",
        path_to_base_model=asked["base"],
        model_paths=list(sources.values()),
        path_to_store_yaml=str(out / "configuration"),
        path_to_store_merged_model=str(out / "merged"),
        dtype="float32",
    )
    problem = Problem(
        Path(asked["tasks"]),
        asked["targets"],
        merger=own,
        n_var=len(sources),
        n_obj=1,
        device="cpu",
        load_in_4bit=False,
    )
    start = time.perf_counter()
    searcher = Searcher(
        problem,
        GA(pop_size=POPULATION),
        str(out),
        n_iter=max(1, asked["candidates"] // POPULATION),
        seed=asked["seed"],
        run_id="run",
    )
    searcher.search()
    found = {
        "weights": dict(zip(sources, searcher.result_X.tolist(), strict=True)),
        "seconds": time.perf_counter() - start,
        "candidates": problem.step,
    }
    (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

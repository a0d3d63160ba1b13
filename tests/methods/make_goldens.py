"""Makes goldens.json with the reference, mergekit 0.1.5, in a virtual environment of its own:

    pip install torch==2.13.0 mergekit==0.1.5
    python tests/methods/make_goldens.py

Calls its public `merge_tensors` in float32 on the CPU; nothing of its code is here.
"""

import json
from pathlib import Path

import torch
from mergekit.merge_methods import merge_tensors

SHAPE = (6, 10)  # so that every density keeps a whole number: the reference rounds down
WEIGHTS = [0.7, 0.2, 0.5]
CRUMBS = [(0.5, 0.1), (0.9, 0.0), (0.9, 0.2), (0.3, 0.2)]
CASES = [
    ("linear", {"normalize": True}),
    ("linear", {"normalize": False}),
    ("task_arithmetic", {"lambda": 1.0, "normalize": False}),
    ("task_arithmetic", {"lambda": 0.4, "normalize": False}),
    *(
        ("ties", {"density": density, "lambda": 0.8, "normalize": normalize})
        for density in (0.2, 0.5, 1.0)
        for normalize in (True, False)
    ),
    *(("slerp", {"t": t}) for t in (0.0, 0.3, 0.5, 1.0)),
    ("nuslerp", {"task_vectors": True}),
    ("nuslerp", {"task_vectors": False}),
    ("nuslerp", {"task_vectors": False, "by_row": True}),
    ("nuslerp", {"task_vectors": False, "by_column": True}),
    ("karcher", {"max_iter": 50, "tol": 1e-9}),
    ("model_stock", {"filter_wise": False}),
    ("model_stock", {"filter_wise": True}),
    ("nearswap", {"t": 0.3}),
    ("nearswap", {"t": 2.0}),
    *(("breadcrumbs", {"density": d, "gamma": g, "lambda": 0.8}) for d, g in CRUMBS),
    *(("breadcrumbs_ties", {"density": d, "gamma": g, "lambda": 0.8}) for d, g in CRUMBS),
    *(("sce", {"select_topk": share}) for share in (0.2, 0.5, 1.0)),
    ("ram", {"epsilon": 1.0}),
    ("ramplus", {"epsilon": 1.0, "r": 0.5, "alpha": 2.0}),
    ("ramplus", {"epsilon": 1.0, "r": 0.5, "alpha": 0.1}),
]
"""Method and parameters, by evomerge's names."""


def operands() -> list[torch.Tensor]:
    """Base and three sources."""
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(SHAPE, generator=generator) for _ in range(4)]


NAMES = {"ramplus": "ramplus_tl"}
FLAGS = {
    "by_row": {"nuslerp_flatten": False, "nuslerp_row_wise": False},
    "by_column": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
}
WEIGHTED = ("nuslerp", "breadcrumbs", "breadcrumbs_ties")


def reference(method: str, parameters: dict[str, float]) -> torch.Tensor:
    """The reference's result, under its own names."""
    base, *sources = operands()
    values = dict(parameters)
    with_base = values.pop("task_vectors", method not in ("linear", "slerp", "karcher"))
    for flag, theirs in FLAGS.items():
        if values.pop(flag, False):
            values |= theirs
    if method == "nearswap":
        return merge_tensors([base, sources[0]], method, parameters=values, base_index=0)
    if method == "slerp":
        return merge_tensors(sources[:2], method, parameters=values, base_index=0)
    if method == "nuslerp":
        sources = sources[:2]
    if method in ("linear", "task_arithmetic", "ties", *WEIGHTED):
        values["weight"] = WEIGHTS[: len(sources)]
    name = NAMES.get(method, method)
    if with_base:
        return merge_tensors([base, *sources], name, parameters=values, base_index=0)
    return merge_tensors(sources, name, parameters=values)


if __name__ == "__main__":
    rows = [
        {
            "method": method,
            "parameters": parameters,
            "merged": reference(method, parameters).flatten().tolist(),
        }
        for method, parameters in CASES
    ]
    content = {
        "origin": "mergekit 0.1.5 merge_tensors, float32 on CPU; see make_goldens.py",
        "weights": WEIGHTS,
        "operands": [operand.flatten().tolist() for operand in operands()],
        "shape": SHAPE,
        "cases": rows,
    }
    Path(__file__).with_name("goldens.json").write_text(json.dumps(content) + "\n")

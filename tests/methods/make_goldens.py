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
]


def operands() -> list[torch.Tensor]:
    """Base and three sources."""
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(SHAPE, generator=generator) for _ in range(4)]


def reference(method: str, parameters: dict[str, float]) -> torch.Tensor:
    base, *sources = operands()
    if method == "slerp":
        return merge_tensors(sources[:2], method, parameters=parameters, base_index=0)
    if method == "linear":
        return merge_tensors(sources, method, parameters={**parameters, "weight": WEIGHTS})
    values = {**parameters, "weight": WEIGHTS}
    return merge_tensors([base, *sources], method, parameters=values, base_index=0)


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

"""Agreement with the reference implementation; goldens.json says how it was made."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.methods import METHODS
from evomerge.methods.apply import merge_tensor
from evomerge.methods.parameters import check_parameters
from evomerge.methods.statistics import TensorStatistics

GOLDENS = json.loads(Path(__file__).with_name("goldens.json").read_text())


def case_name(case: dict[str, Any]) -> str:
    return f"{case['method']} {case['parameters']}"


@pytest.mark.parametrize("case", GOLDENS["cases"], ids=case_name)
def test_agrees_with_the_reference(case: dict[str, Any]) -> None:
    operands = [torch.tensor(values).view(GOLDENS["shape"]) for values in GOLDENS["operands"]]
    method = METHODS[case["method"]]
    if method.maximum_sources is not None:
        operands = operands[: 1 + method.maximum_sources]
    known = {row.name for row in method.parameters}
    given = {name: value for name, value in case["parameters"].items() if name in known}
    if "weight" in known:
        given["weight"] = GOLDENS["weights"][: len(operands) - 1]
    parameters = check_parameters(method, given, len(operands) - 1)
    statistics = TensorStatistics(operands=tuple(operands))
    merged = merge_tensor(method, operands[0], tuple(operands[1:]), parameters, statistics)
    expected = torch.tensor(case["merged"]).view(GOLDENS["shape"])
    torch.testing.assert_close(merged, expected, atol=1e-6, rtol=1e-5)

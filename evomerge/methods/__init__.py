"""Merge methods: arithmetic only. A method is one file and one row in METHODS."""

from evomerge.errors import UserError, did_you_mean
from evomerge.methods.dare import DARE_LINEAR, DARE_TIES
from evomerge.methods.linear import LINEAR
from evomerge.methods.method import Method
from evomerge.methods.passthrough import PASSTHROUGH
from evomerge.methods.slerp import SLERP
from evomerge.methods.task_arithmetic import TASK_ARITHMETIC
from evomerge.methods.ties import TIES

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        LINEAR,
        SLERP,
        TASK_ARITHMETIC,
        TIES,
        DARE_LINEAR,
        DARE_TIES,
        PASSTHROUGH,
    )
}


def look_up(name: str) -> Method:
    """The method of that name; UserError that lists the known names if there is none."""
    if name not in METHODS:
        raise UserError(f"no merge method is called '{name}': {did_you_mean(name, METHODS)}")
    return METHODS[name]

"""Merge methods: arithmetic only. A method is one file and one row in METHODS."""

from evomerge.errors import UserError, did_you_mean
from evomerge.methods.breadcrumbs import BREADCRUMBS, BREADCRUMBS_TIES
from evomerge.methods.consensus import CONSENSUS
from evomerge.methods.core_space import CORE_SPACE
from evomerge.methods.dare import DARE_LINEAR, DARE_TIES
from evomerge.methods.della import DELLA, DELLA_LINEAR
from evomerge.methods.iso_c import ISO_C
from evomerge.methods.karcher import KARCHER, MULTISLERP
from evomerge.methods.knots import KNOTS
from evomerge.methods.linear import LINEAR
from evomerge.methods.method import Method
from evomerge.methods.model_stock import MODEL_STOCK
from evomerge.methods.nearswap import NEARSWAP
from evomerge.methods.nuslerp import NUSLERP
from evomerge.methods.passthrough import PASSTHROUGH
from evomerge.methods.ram import RAM, RAMPLUS
from evomerge.methods.regmean import REGMEAN
from evomerge.methods.sce import SCE
from evomerge.methods.slerp import SLERP
from evomerge.methods.task_arithmetic import TASK_ARITHMETIC
from evomerge.methods.ties import TIES
from evomerge.methods.tsv import TSV

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        LINEAR,
        SLERP,
        NUSLERP,
        MULTISLERP,
        KARCHER,
        MODEL_STOCK,
        TASK_ARITHMETIC,
        TIES,
        DARE_LINEAR,
        DARE_TIES,
        DELLA_LINEAR,
        DELLA,
        BREADCRUMBS,
        BREADCRUMBS_TIES,
        SCE,
        CONSENSUS,
        RAM,
        RAMPLUS,
        NEARSWAP,
        TSV,
        ISO_C,
        KNOTS,
        CORE_SPACE,
        REGMEAN,
        PASSTHROUGH,
    )
}


def look_up(name: str) -> Method:
    """The method of that name; UserError that lists the known names if there is none."""
    if name not in METHODS:
        raise UserError(f"no merge method is called '{name}': {did_you_mean(name, METHODS)}")
    return METHODS[name]

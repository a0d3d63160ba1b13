"""The documentation of the methods, from their rows."""

from evomerge.methods import METHODS
from evomerge.methods.derivative import smooth_parameters
from evomerge.methods.method import Method, Parameter

_HEAD = """\
# Merge methods

Made by `python -m evomerge.methods > configs/METHODS.md`, from the rows of METHODS.

w0: the base; w_i: the sources; δ_i = w_i − w0: task vectors; p_i: weights; λ: `lambda`.

| method | what it is | result | sources | base | computed once | paper |
|---|---|---|---|---|---|---|
"""

_PARAMETERS = """
## Parameters

"Explored" is the range of a search whose `space.ranges` says nothing; "fixed" parameters keep their
default unless it does. "Gradient": whether `guide: gradient` can move it.

| method | parameter | meaning | default | explored | gradient |
|---|---|---|---|---|---|
"""


def methods_table() -> str:
    """Markdown: every method with its formula, paper, sources; every parameter with its range."""
    rows = [_row(method) for method in METHODS.values()]
    parameters = [
        f"| {method.name} | {row.name} | {row.help}{_kind(row)} | {_default(row)} | {_range(row)} "
        f"| {'yes' if row.name in smooth_parameters(method) else 'no'} |"
        for method in METHODS.values()
        for row in method.parameters
    ]
    return _HEAD + "\n".join(rows) + "\n" + _PARAMETERS + "\n".join(parameters) + "\n"


def _row(method: Method) -> str:
    most = method.maximum_sources
    count = (
        f"{method.minimum_sources}"
        if most == method.minimum_sources
        else (
            f"{method.minimum_sources} or more"
            if most is None
            else f"{method.minimum_sources}–{most}"
        )
    )
    needs = ", ".join(sorted(method.needs - {"mask"})) or "nothing"
    paper = f"[paper]({method.paper})" if method.paper else ""
    base = "yes" if method.needs_base else "no"
    return (
        f"| {method.name} | {method.title} | {_escaped(method.formula)} | {count} | {base} "
        f"| {needs} | {paper} |"
    )


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _kind(row: Parameter) -> str:
    if not row.per_source:
        return ""
    return ", per source (a search proposes one for all)" if row.shared else ", per source"


def _default(row: Parameter) -> str:
    return str(row.default).lower() if isinstance(row.default, bool) else f"{row.default:g}"


def _range(row: Parameter) -> str:
    if not row.searched or isinstance(row.default, bool):
        return "fixed"
    steps = f" in steps of {row.step:g}" if row.step is not None else ""
    return f"{row.low:g} to {row.high:g}{steps}"

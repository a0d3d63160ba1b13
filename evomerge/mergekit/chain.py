"""Several merges in one file of mergekit, each of the results of others: made one by one."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import UserError
from evomerge.exporting import merge
from evomerge.files import is_there
from evomerge.mergekit.reading import from_mergekit, is_mergekit, read_documents
from evomerge.starter import source_names

log = logging.getLogger(__name__)

FILE = "mergekit.yml"
"""In the result: all merges of the chain, with absolute paths."""

Document = Mapping[str, Any]


def is_chain(path: Path) -> bool:
    """Whether the file holds several merges of mergekit; false for files that cannot be read."""
    documents = read_documents(path)
    return len(documents) > 1 and all(map(is_mergekit, documents))


def merge_chain(
    path: Path,
    out: Path,
    *,
    keep: bool = False,
    force: bool = False,
    trust_remote_code: bool = False,
    device: str = "auto",
) -> Path:
    """Makes the merges of the file in order and writes the last to the folder `out`.

    Results in between lie in a folder beside `out`, on the same disk, and are removed at the end,
    also of a failure; `keep` leaves them in OUT-between. The result holds all merges as
    mergekit.yml, of which the same command makes it again. UserError for names that are missing,
    doubled or refer to each other in a circle, and for what `merge` refuses.
    """
    documents = read_documents(path)
    try:
        ordered = in_order(documents)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if out.exists() and not force:
        raise UserError(f"{out}: exists; choose another folder, or --force to replace it")
    text = yaml.safe_dump_all([_absolute(each, path.parent) for each in ordered], sort_keys=False)
    with _between(out, keep=keep) as folder:
        made: dict[str, str] = {}
        names = [str(document.get("name") or out.name) for document in ordered]
        folders = [folder / name for name in source_names(names[:-1])]
        for number, (document, name) in enumerate(zip(ordered, names, strict=True), start=1):
            last = number == len(ordered)
            target = out if last else folders[number - 1]
            log.info("merge %d of %d: %s", number, len(ordered), name)
            try:
                recipe = from_mergekit(_replaced(document, made), path.parent)
                merge(
                    recipe,
                    target,
                    force=force and last,
                    trust_remote_code=trust_remote_code,
                    device=device,
                    beside={FILE: text} if last else None,
                )
            except UserError as error:
                raise UserError(f"{path}: merge {number} ({name}): {error}") from error
            made[name] = str(target.resolve())
    return out


def in_order(documents: Sequence[Document]) -> list[Document]:
    """The merges, each behind those it is made of; the one that is the result at the end.

    The result is the one without a name, else the only one that no other is made of.
    """
    named: dict[str, Document] = {}
    unnamed = [each for each in documents if not each.get("name")]
    for document in documents:
        name = document.get("name")
        if name and named.setdefault(str(name), document) is not document:
            raise UserError(f"name: {name} stands twice; expected another for each merge")
    if len(unnamed) > 1:
        raise UserError(f"{len(unnamed)} merges have no name; expected one, the result")
    used = {model for document in documents for model in _models(document)}
    ends = unnamed or [each for name, each in named.items() if name not in used]
    if len(ends) != 1:
        told = ", ".join(str(each["name"]) for each in ends) or "none"
        raise UserError(
            f"merges that no other is made of: {told}; expected one, the result: take its name away"
        )
    ordered: list[Document] = []

    def visit(document: Document, above: tuple[str, ...]) -> None:
        name = str(document.get("name") or "")
        if name and name in above:
            raise UserError(f"name: {' of '.join((*above, name))}: a merge is made of itself")
        for model in _models(document):
            if model in named and not any(named[model] is each for each in ordered):
                visit(named[model], (*above, name) if name else above)
        ordered.append(document)

    visit(ends[0], ())
    if idle := [name for name, each in named.items() if not any(each is one for one in ordered)]:
        log.warning("not made, since the result is not made of them: %s", ", ".join(idle))
    return ordered


def _models(document: Document) -> list[str]:
    """Every model that a merge names, as it is written."""
    found: list[str] = []

    def note(model: Any) -> Any:
        found.append(str(model))
        return model

    _mapped(document, note)
    return found


def _replaced(document: Document, made: Mapping[str, str]) -> Document:
    """The merge with the folders of earlier results in the place of their names."""
    return _mapped(document, lambda model: made.get(str(model), model))  # type: ignore[no-any-return]


def _absolute(document: Document, folder: Path) -> Document:
    """The merge with absolute paths of local folders."""

    def absolute(model: Any) -> Any:
        local = [
            each
            for each in (folder / str(model), Path(str(model)))
            if is_there(each) and each.is_dir()
        ]
        return str(local[0].resolve()) if local else model

    return _mapped(document, absolute)  # type: ignore[no-any-return]


def _mapped(value: Any, change: Any, key: str = "") -> Any:
    """A copy of the document with `change` applied to the models it names."""
    if isinstance(value, Mapping):
        return {name: _mapped(each, change, str(name)) for name, each in value.items()}
    if isinstance(value, list):
        return [_mapped(each, change) for each in value]
    return change(value) if key in ("model", "base_model", "path") and value is not None else value


@contextmanager
def _between(out: Path, *, keep: bool) -> Iterator[Path]:
    """A folder beside `out` for what lies between."""
    if keep:
        folder = out.with_name(f"{out.name}-between")
        if folder.exists():
            raise UserError(f"{folder}: exists; remove it, or leave --keep-between out")
        folder.mkdir(parents=True)
        yield folder
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-between-", dir=out.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)

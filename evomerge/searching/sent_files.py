"""The files of trials, sent along with a study in a database: workers need not share a folder."""

from base64 import b64decode, b64encode
from collections.abc import Mapping

import optuna

from evomerge.errors import UserError
from evomerge.files import write_bytes
from evomerge.searching.record import FILES
from evomerge.searching.run_folder import RunFolder, Side


def packed(folder: RunFolder, side: Side, trial: int) -> dict[str, str]:
    """Name -> content in base64 of what the folder has of a trial."""
    paths = (folder.documents(side, trial), folder.answers(side, trial))
    return {p.name: b64encode(p.read_bytes()).decode() for p in paths if p.exists()}


def unpack(files: Mapping[str, str], folder: RunFolder, side: Side, trial: int) -> None:
    """Writes what `packed` made; other names are left out."""
    for path in (folder.documents(side, trial), folder.answers(side, trial)):
        if path.name in files:
            write_bytes(path, b64decode(files[path.name]))


def fetch_from(study: optuna.Study, folder: RunFolder, later: Mapping[Side, str]) -> None:
    """Makes the folder fetch from the study what it lacks.

    later: side -> prefix of the study attributes that have what was scored after a trial's end.
    """

    def fetch(side: Side, trial: int) -> None:
        attributes = study.user_attrs.get(f"{later[side]}:{trial}", {})
        files = attributes.get(FILES)
        if files is None and side == "search":
            files = study.get_trials(deepcopy=False)[trial].user_attrs.get(FILES)
        if files is None:
            raise UserError(
                f"the scores of trial {trial} on the {side} documents are neither in {folder.path} "
                "nor in the study"
            )
        unpack(files, folder, side, trial)

    folder.fetch = fetch

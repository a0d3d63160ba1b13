"""The files of a trial: its scores per document, and what it answered."""

import shutil

from evomerge.scoring.scorecard import Scorecard, write_answers, write_documents
from evomerge.searching.run_folder import RunFolder, Side


def write_trial(folder: RunFolder, side: Side, trial: int, scorecard: Scorecard) -> None:
    """Writes what was found on one side of the split."""
    write_answers(scorecard.answered, folder.answers(side, trial))
    write_documents(scorecard.per_document, folder.documents(side, trial))


def copy_trial(old: RunFolder, number: int, new: RunFolder, trial: int) -> None:
    """Copies what trial `number` of a run scored and answered on the search documents."""
    answers = old.answers("search", number)
    if answers.exists():
        shutil.copyfile(answers, new.answers("search", trial))
    shutil.copyfile(old.documents("search", number), new.documents("search", trial))

"""How much of a budget is used up, by all workers together, and which trials are new."""

import optuna
from optuna.trial import FrozenTrial, TrialState

from evomerge.searching.record import DONE, TrialRecord, read_trial, read_trials
from evomerge.searching.study import is_untold


class Tally:
    """Looks at every finished trial of a study once."""

    def __init__(self, study: optuna.Study) -> None:
        """Of a study with trials from before, which are counted and are not new."""
        self._study = study
        self._first = 0
        """Number of the first trial that has not ended."""
        self._ended: set[int] = set()
        self._untold: set[int] = set()
        self.done = 0
        self.documents = 0
        """Search documents scored for all trials together, each kind counted."""
        self.running = 0
        """Trials under way, not those whose value waits for the scores of base and sources."""
        self.look()
        # With those that were scored after a trial's end.
        self.documents = sum(record.scored for record in read_trials(study))

    def look(self) -> list[TrialRecord]:
        """Counts what is new; the records of trials that have got their end since the last look, by
        number. A trial counts as soon as it is scored, and is new once it has its value."""
        new = []
        for trial in self._look():
            record = read_trial(trial)
            self._ended.add(trial.number)
            if trial.number in self._untold:
                self._untold.remove(trial.number)
            elif record.state in DONE:
                self._count(record)
            if record.state in DONE:
                new.append(record)
        return new

    def _look(self) -> list[FrozenTrial]:
        """Those that ended since; counts running and untold ones."""
        trials = self._study.get_trials(deepcopy=False)
        self.running, found = 0, []
        for trial in trials[self._first :]:
            if trial.number in self._ended:
                continue
            if is_untold(trial):
                if trial.number not in self._untold:
                    self._untold.add(trial.number)
                    self._count(read_trial(trial))
            elif trial.state == TrialState.RUNNING:
                self.running += 1
            elif trial.state.is_finished():
                found.append(trial)
        while self._first < len(trials) and self._first in self._ended:
            self._first += 1
        return found

    def _count(self, record: TrialRecord) -> None:
        self.done += 1
        self.documents += record.scored

"""A plateau: recognised in a run's records, said, and the end of the search if so configured."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import NormalDist

import pytest

from evomerge import load_config, search
from evomerge.describe import describe_run
from evomerge.report import read_run
from evomerge.run_picture import draw_run
from evomerge.scoring.scorecard import read_documents
from evomerge.searching import plateau
from evomerge.searching.plateau import WINDOW, Plateau, PlateauWatch, find_plateau
from evomerge.searching.progress import Progress
from evomerge.searching.racing import Difference
from evomerge.searching.record import TrialRecord
from evomerge.searching.run_folder import RunFolder

Small = Callable[..., Path]
FLAT = "guide: none\nsampler: random\nobjective: metric\nearly_stopping: false\n"


@pytest.fixture
def flat(small: Small) -> Path:
    """A search that hardly moves from its base: few documents tell its candidates apart."""
    path = small(FLAT, trials=60)
    path.write_text(path.read_text().replace("depth: global}", "depth: global, ranges: RANGES}"))
    path.write_text(path.read_text().replace("RANGES", "{weight: [0.28, 0.32]}"))
    return path


def test_a_plateau_is_told_and_ends_the_search_where_it_may(flat: Path, tmp_path: Path) -> None:
    lines: list[str] = []

    def on_progress(progress: Progress, record: TrialRecord | None) -> None:
        lines.append(progress.line())

    outcome = search(flat, on_progress=on_progress)
    report = read_run(outcome.folder)
    assert report.counts() == {"complete": 60}
    found = report.plateau
    assert found is not None
    assert found.spread < found.noise
    assert found.trials == 60 - found.since
    assert f"plateau for {found.trials} trials" in lines[-1]
    assert found.sentence() in describe_run(outcome.folder)
    assert "Plateau: since trial" in RunFolder(outcome.folder).log.read_text()
    draw_run(outcome.folder, tmp_path / "run.svg")
    assert "plateau" in (tmp_path / "run.svg").read_text()

    # The same search, allowed to stop: where the plateau was found, and not again on a resume.
    stopping = flat.with_name("stopping.yaml")
    text = flat.read_text().replace(f"output: {tmp_path}/run", f"output: {tmp_path}/stopping")
    stopping.write_text(f"{text}stop_on_plateau: true\n")
    first = read_run(search(stopping).folder)
    done = first.counts()["complete"]
    assert done == found.since + WINDOW
    assert first.verdict is not None
    assert read_run(search(stopping).folder).counts() == first.counts()
    stopping.write_text(text)
    assert read_run(search(stopping).folder).counts() == {"complete": 60}


def test_what_is_no_plateau(small: Small) -> None:
    config = small(FLAT, trials=40)
    # From nothing to a ruin: these differ by far more than noise.
    ruin = config.read_text().replace("depth: global}", "depth: global, ranges: {weight: [0, 3]}}")
    config.write_text(ruin.replace("limit: 16", "limit: 80").replace("limit: 12", "limit: 80"))
    report = read_run(search(config).folder)
    folder = RunFolder(load_config(config).output())

    def read(number: int) -> object:
        return read_documents(folder.documents("search", number))

    def find(records: list[TrialRecord], window: int) -> Plateau | None:
        return find_plateau(records, report.goal.climbed, read, window)  # type: ignore[arg-type]

    records = list(report.records)
    assert find(records, 25) is None
    # Too few candidates, or none before them, tell nothing.
    assert find(records[:20], 25) is None
    own = [record for record in records if record.baseline is None]
    assert find(own, len(own)) is None
    # One candidate again and again is a plateau, unless it beats the best before beyond noise.
    best = max(own, key=lambda record: record.value or 0.0)
    worst = min(records[:13], key=lambda record: record.value or 0.0)
    again = [replace(best, number=number) for number in range(100, 110)]

    def read_again(number: int) -> object:
        return read(best.number if number >= 100 else number)

    flat = find_plateau([best, *again], report.goal.climbed, read_again, 10)  # type: ignore[arg-type]
    assert flat is not None
    assert (flat.since, flat.trials, flat.spread) == (100, 10, 0)
    assert find_plateau([worst, *again], report.goal.climbed, read_again, 10) is None  # type: ignore[arg-type]


def test_a_plateau_is_not_left_and_found_again_with_every_trial(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = read_run(search(small(FLAT, trials=WINDOW + 20)).folder)
    spread = [2.0]

    def normal(numbers: object, *unused: object, **also: object) -> Difference:
        """One of as many quantiles of a normal distribution as there are candidates."""
        share = (next(turn) % WINDOW + 0.5) / WINDOW
        return Difference(value=spread[0] * NormalDist().inv_cdf(share), error=1.0)

    turn = count()
    monkeypatch.setattr(plateau, "difference", normal)
    watch = PlateauWatch(RunFolder(report.folder), report.goal, report.records[:-1])
    found = []
    for spread[0] in (1.2, 0.9, 1.2, 0.9, 1.3, 1.2, 0.9):
        turn = count()
        watch.add(report.records[-1])
        found.append(watch.plateau is not None)
    assert found == [False, True, True, True, False, False, True]

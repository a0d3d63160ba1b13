"""Which figures a page has, by their names in addresses."""

from functools import lru_cache
from urllib.parse import quote

from evomerge.dashboard import figures, heatmaps
from evomerge.dashboard.depth import Depth, depth_of
from evomerge.dashboard.figure import Figure
from evomerge.dashboard.importance import LEAST, importances
from evomerge.dashboard.snapshot import Snapshot


@lru_cache(maxsize=16)
def run_figures(snapshot: Snapshot) -> list[Figure]:
    """Those of a run, without that of importance, which takes seconds in a large one."""
    found: list[Figure | None] = [
        figures.front(snapshot),
        figures.scores(snapshot),
        figures.holdout(snapshot),
        figures.time_spent(snapshot),
    ]
    return [figure for figure in found if figure is not None]


def importance_of(snapshot: Snapshot) -> Figure | None:
    """None where too few trials tell."""
    shares, trials = importances(snapshot)
    return figures.importance(shares, trials) if trials >= LEAST and shares else None


def trial_figures(depth: Depth) -> list[Figure]:
    """Those of a recipe: its methods, then each parameter that varies."""
    own = [heatmaps.coefficients(depth, name) for name in varying(depth)]
    return [heatmaps.methods(depth), *own]


def varying(depth: Depth) -> list[str]:
    """Parameters with more than one value, and the weight."""
    counts = depth.cells.groupby("parameter")["value"].nunique()
    return [name for name in depth.parameters if name == "weight" or counts[name] > 1]


def winner_figures(snapshot: Snapshot) -> list[Figure]:
    """Those of the recipe that won, or is ahead."""
    winner = snapshot.winner
    if winner is None:
        return []
    return trial_figures(depth_of(snapshot.index.full(winner.number).recipe))


def named(found: list[Figure], name: str) -> Figure:
    """KeyError that lists the names."""
    for figure in found:
        if figure.name == name:
            return figure
    known = ", ".join(figure.name for figure in found)
    raise KeyError(f"there is no figure {quote(name)} here; there are: {known}")

"""What an address asks for: trials by name, a side of the split, how the leaderboard is shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pandas as pd
from starlette.datastructures import QueryParams

from evomerge.dashboard.compare import Chosen
from evomerge.dashboard.runs import Run, Runs
from evomerge.dashboard.snapshot import Snapshot
from evomerge.errors import UserError
from evomerge.searching.run_folder import Side

STATES = ("complete", "pruned", "step", "failed", "interrupted", "running")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How the leaderboard is asked for, from an address."""

    state: str = ""
    method: str = ""
    name: str = ""
    kept: str = ""
    """`yes`: only trials that keep all limits."""
    sort: str = "rank"
    order: str = "down"
    page: int = 1

    @staticmethod
    def of(query: QueryParams) -> "Asked":
        """UserError for values that are none."""
        words = {k: query.get(k, "") for k in ("state", "method", "name", "kept")}
        page = query.get("page", "1")
        if not page.isdecimal() or len(page) > 6 or not 0 < int(page) < 10**6:
            raise UserError(f"page={page}: expected a number from 1")
        order = query.get("order", "down")
        if words["state"] and words["state"] not in STATES:
            raise UserError(f"state={words['state']}: expected one of {', '.join(STATES)}")
        if order not in ("up", "down"):
            raise UserError(f"order={order}: expected up or down")
        return Asked(**words, sort=query.get("sort", "rank"), order=order, page=int(page))

    def filtered(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows that are asked for, in the order asked for."""
        keep = frame["state"] != "waiting"
        if self.state:
            keep &= frame["state"] == self.state
        if self.method:
            keep &= frame["methods"].str.split().apply(lambda own: self.method in own)
        if self.name:
            keep &= frame["name"].str.contains(self.name, case=False, regex=False)
        if self.kept == "yes":
            keep &= frame["kept"]
        found = frame[keep]
        if self.sort == "rank":
            keys = found[["rank", "value", "estimate"]]
            ways = [True, False, False]
            ordered = keys.sort_values(["rank", "value", "estimate"], ascending=ways, kind="stable")
            return found.loc[ordered.index if self.order == "down" else ordered.index[::-1]]
        if self.sort not in frame:
            raise UserError(
                f"sort={self.sort}: expected rank, or one of {', '.join(map(str, frame))}"
            )
        return found.sort_values(self.sort, ascending=self.order == "up", kind="stable")

    def link(self, **changed: Any) -> str:
        """The address's query with some values changed."""
        values = {name: getattr(self, name) for name in self.__slots__} | changed
        default = Asked()
        return "?" + urlencode({k: v for k, v in values.items() if v != getattr(default, k)})


def ready(run: Run) -> Snapshot:
    """UserError while it is being read for the first time."""
    if run.snapshot is None:
        raise UserError(f"{run.name} is still being read, or has not begun")
    return run.snapshot


def choose(runs: Runs, words: Sequence[str], default: str | None) -> list[Chosen]:
    """`12` or a baseline's name, of the default run, or `run/12`; UserError for anything else."""
    found: dict[tuple[str, int], Chosen] = {}
    for word in words:
        name, slash, trial = word.strip().rpartition("/")
        name = name if slash else default or ""
        if not name:
            raise UserError(f"{word!r}: of which run? Expected run/number")
        run = runs[name]
        snapshot = ready(run)
        number = int(trial[:20]) if trial.isdecimal() else snapshot.named(trial)
        if number is None:
            raise UserError(f"{word!r} is no trial; expected a number or a baseline's name")
        record = snapshot.index.full(number)
        found[name, number] = Chosen(run=run, snapshot=snapshot, record=record)
    return list(found.values())


def side_of(query: QueryParams) -> Side:
    """UserError for a side that there is none of."""
    side = query.get("side", "search")
    if side == "search":
        return "search"
    if side == "holdout":
        return "holdout"
    raise UserError(f"side={side}: expected search or holdout")

"""Doors of run folders that came from elsewhere, and of the dashboard's addresses."""

import asyncio
import gzip
import io
import json
import zipfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from evomerge.dashboard.app import make_app
from evomerge.dashboard.runs import Runs
from evomerge.describe import describe_run
from evomerge.documents import flips, read_questions
from evomerge.errors import UserError
from evomerge.report import read_run
from evomerge.searching.run_folder import Side
from tests.fuzz.judging import Files, Link, Pipe
from tests.fuzz.mutating import SCALARS, spoil, spoil_bytes, written

TRIALS = (0, 1, 5)
"""Trials whose files are spoilt."""
_JOURNAL = "night/study.journal"
_PLACES = (
    *("/", "/runs.csv", "/run/night", "/run/night/trials.csv", "/run/night/trial/5"),
    *("/run/night/trial/1?against=0", "/run/night/trial/1/documents.csv?against=0&side=holdout"),
    *("/run/night/trial/5/scores.csv", "/run/night/trial/5/recipe.yaml"),
    *("/run/night/compare?trials=0,1,5", "/compare.csv?trials=night/0,night/1", "/events"),
    *("/recipes.csv?trials=night/0,night/5", "/run/night/figures/scores.csv"),
    *("/run/night/figures/importance.json", "/run/night/figures/front.json"),
    *(
        "/run/night/trial/5/figures/coefficients-weight.json",
        "/compare/figures/scores.json?trials=night/0,night/5",
    ),
)
_QUERIES: dict[str, tuple[str, ...]] = {
    "state": ("complete", "pruned", "x", "waiting"),
    "method": ("task_arithmetic", "ties", "["),
    "name": ("trial", "(", "\\", "a" * 3000),
    "kept": ("yes", "no"),
    "sort": ("rank", "value", "points", "task capital", "because", "methods", "kept", "x"),
    "order": ("up", "down", "x"),
    "page": ("1", "2", "999999", "-1", "0", "x", "١", "²", "1e3", "9" * 5000),
    "against": ("0", "1", "base", "night/2", "other/1", "9" * 30, "-1", "night/../0", "٣"),
    "task": ("capital", "past", "x", ""),
    "side": ("search", "holdout", "x"),
    "trials": ("0,1", "night/0,night/1", ",,", "0", "night/", "/", "0,0", "base,past", "1" * 400),
    "trial": ("0", "5", "x", "night/1"),
    "run": ("night", "x"),
    "token": ("x",),
}


class Site:
    """The dashboard over a folder of runs, asked without a network."""

    def __init__(self, folder: Path) -> None:
        self.runs = Runs([folder])
        self.runs.find()
        self.runs.refresh()
        self._app = make_app(self.runs, start_optuna=lambda run: "http://127.0.0.1/")

    def ask(self, place: bytes, method: str = "GET") -> int:
        """The status of an address, path and query; exceptions of the program pass."""
        return _loop().run_until_complete(self._ask(place, method))

    async def _ask(self, place: bytes, method: str) -> int:
        path, _, query = place.partition(b"?")
        from urllib.parse import unquote

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path.decode("latin-1")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": [(b"host", b"testserver")],
            "server": ("testserver", 80),
            "client": ("127.0.0.1", 1),
        }
        status: list[int] = []

        asked = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if asked and not path.startswith(b"/events"):
                return asked.pop()
            if path.startswith(b"/events"):
                return {"type": "http.disconnect"}
            await asyncio.sleep(3600)  # whoever asks stays
            raise TimeoutError

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])

        await self._app(scope, receive, send)
        if not status and path.startswith(b"/events"):
            return 0  # nobody listened any more
        assert status, "no answer"
        assert status[0] < 500, f"status {status[0]}"
        return status[0]


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.to_thread(int))  # its thread is there from now on
    return loop


def _ask(site: Site, folder: Path) -> None:
    """UserError where the page says that it cannot be shown."""
    status = site.ask((folder / "address").read_bytes())
    if status >= 400:
        raise UserError(f"answered with {status}")


class Addresses:
    """Paths and queries of the dashboard, over a sound run."""

    name = "addresses"

    def __init__(self, runs: Path) -> None:
        """runs: holds a sound run named `night`."""
        self._site = Site(runs)

    def make(self, random: Random) -> Files:
        path, _, query = random.choice(_PLACES).partition("?")
        pairs = [pair.split("=") for pair in query.split("&") if pair]
        for _ in range(random.randrange(4)):
            key = random.choice(list(_QUERIES))
            value = random.choice((*_QUERIES[key], str(random.choice(_SHORT))))
            pairs.append([key, value])
        if random.random() < 0.4:
            parts = path.split("/")
            other = (
                "..",
                "%2e%2e",
                "%00",
                "night",
                "x" * 3000,
                "-1",
                "9" * 4400,
                "%",
                "%ff",
                "",
                "static",
                "٣",
            )
            parts[random.randrange(len(parts))] = random.choice(other)
            path = "/".join(parts)
        if random.random() < 0.05:
            path = random.choice(
                ("/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd")
            )
            path = random.choice((path, "/static/" + "a" * 5000, "/static/%00", "/static/app.css"))
        words = "&".join(f"{quote(key)}={quote(value, errors='replace')}" for key, value in pairs)
        place = f"{path}?{words}".encode("latin-1", "replace")
        return {"address": spoil_bytes(random, place) if random.random() < 0.3 else place}

    def enter(self, folder: Path) -> None:
        _ask(self._site, folder)


_SHORT = tuple(each for each in SCALARS if isinstance(each, (str, int)) and len(str(each)) < 400)


class _RunFiles:
    """A run folder in memory."""

    def __init__(self, run: Path) -> None:
        names = ["study.journal", "documents.parquet"]
        for side in ("search", "holdout"):
            names += [f"{side}/{n:05}.{end}" for n in TRIALS for end in ("npz", "answers.json.gz")]
        self.files: dict[str, Any] = {f"night/{n}": (run / n).read_bytes() for n in names}
        self.lines = self.files[_JOURNAL].splitlines(keepends=True)
        self.attributes = [n for n, line in enumerate(self.lines) if b"user_attr" in line]

    def with_spoilt_line(self, random: Random) -> dict[str, Any]:
        lines = list(self.lines)
        for _ in range(random.choice((1, 1, 2))):
            number = random.choice((random.randrange(len(lines)), random.choice(self.attributes)))
            match random.randrange(6):
                case 0:
                    lines[number] = spoil_bytes(random, lines[number])
                case 1:
                    del lines[number]
                    lines.append(b"")
                case 2:
                    lines.insert(number, random.choice(lines))
                case _:
                    row = spoil(random, json.loads(self.lines[min(number, len(self.lines) - 1)]))
                    text = (
                        json.dumps(_plain(row), separators=(",", ":"))
                        if random.random() < 0.7
                        else written(row)
                    )
                    lines[number] = text.encode("utf-8", "surrogatepass") + b"\n"
        return {**self.files, _JOURNAL: b"".join(lines)}

    def with_extra_line(self, random: Random) -> dict[str, Any]:
        key = random.choice((*_NAMES, *(f"{name}:{n}" for name in _NUMBERED for n in _FAR)))
        value = _plain(random.choice((*SCALARS, {"metrics": []}, {"metrics": [_METRIC]})))
        row = {"op_code": 2, "study_id": 0, "user_attr": {key: value}}
        line = json.dumps({"op_code": 2, "worker_id": "x", **row}, separators=(",", ":"))
        return {**self.files, _JOURNAL: self.files[_JOURNAL] + line.encode() + b"\n"}


_NAMES = (
    *("objective", "tasks", "goal", "constraints", "history", "verdict", "plateau", "guidance"),
    *("references", "front", "limits", "ended", "published", "identity", "starts"),
)
_NUMBERED = ("points", "holdout")
_FAR = (0, 1, 99, -1, 10**7, 10**12, "x", "")
_METRIC = {
    "task": "capital",
    "name": "acc,none",
    "value": 0.5,
    "standard_error": 0.1,
    "documents": 8,
    "higher_is_better": True,
}


def _plain(tree: Any) -> Any:
    """Without raw text, which stands for a number that is too long."""
    if isinstance(tree, dict):
        return {str(key): _plain(value) for key, value in tree.items()}
    return [_plain(each) for each in tree] if isinstance(tree, list) else tree


class Journals:
    """study.journal of a run from elsewhere, through the dashboard."""

    name = "journals"

    def __init__(self, run: Path) -> None:
        self._run = _RunFiles(run)

    def make(self, random: Random) -> Files:
        chance = random.random()
        if chance < 0.2:
            return self._run.with_extra_line(random) | _question(random)
        if chance < 0.25:
            whole = spoil_bytes(random, self._run.files[_JOURNAL])
            other = random.choice((whole, Link("/dev/zero"), b"", b"\x00" * 100, b"{}\n", b"[]\n"))
            return {**self._run.files, _JOURNAL: other} | _question(random)
        return self._run.with_spoilt_line(random) | _question(random)

    def enter(self, folder: Path) -> None:
        _ask(Site(folder), folder)


def _question(random: Random) -> dict[str, Any]:
    return {"address": random.choice(_PLACES).encode()}


class Reports:
    """The same journals through `status` and the Python interface, which read them with Optuna."""

    name = "reports"

    def __init__(self, run: Path) -> None:
        self._run = _RunFiles(run)

    def make(self, random: Random) -> Files:
        if random.random() < 0.2:
            return self._run.with_extra_line(random)
        return self._run.with_spoilt_line(random)

    def enter(self, folder: Path) -> None:
        report = read_run(folder / "night")
        describe_run(folder / "night")
        report.trials()


class RunFiles:
    """Scores, answers and questions per document of a run from elsewhere."""

    name = "run_files"

    def __init__(self, run: Path) -> None:
        self._run = _RunFiles(run)
        self._report = read_run(run)
        self._questions = pd.read_parquet(run / "documents.parquet")
        with np.load(run / "search" / "00000.npz", allow_pickle=False) as entries:
            self._layout = json.loads(str(entries["layout"]))

    def make(self, random: Random) -> Files:
        files = dict(self._run.files)
        side = random.choice(("search", "holdout"))
        scores, answers = f"night/{side}/00000.npz", f"night/{side}/00000.answers.json.gz"
        match random.randrange(7):
            case 0 | 1:
                files[scores] = random.choice(
                    (spoil_bytes(random, files[scores]), self._arrays(random))
                )
            case 2:
                files[answers] = spoil_bytes(random, files[answers])
            case 3:
                own = json.loads(gzip.decompress(files[answers]))
                files[answers] = gzip.compress(
                    written(spoil(random, own)).encode("utf-8", "replace")
                )
            case 4:
                files["night/documents.parquet"] = spoil_bytes(
                    random, files["night/documents.parquet"]
                )
            case 5:
                files["night/documents.parquet"] = self._parquet(random)
            case 6:
                hole = random.choice((Pipe(), Link("/dev/zero"), Link(".."), b"", b"PK\x05\x06"))
                files[random.choice((scores, answers, "night/documents.parquet"))] = hole
        files["side"] = side.encode()
        return files

    def _arrays(self, random: Random) -> bytes:
        """An npz file with other arrays, types, lengths, or sizes that are a lie."""
        layout = written(spoil(random, self._layout))
        entries: dict[str, Any] = {"layout": _npy(np.array(layout.replace("\ud800", "?")))}
        for number in range(6):
            array = random.choice(
                (
                    np.arange(4, dtype=np.int32),
                    np.zeros(4, np.float32),
                    np.zeros((2, 2)),
                    np.array(1),
                )
            )
            entries[str(number)] = _npy(array)
        name = random.choice(list(entries))
        entries[name] = random.choice(
            (
                _npy(np.array([{"a": 1}], dtype=object)),
                _npy_header("<f4", "(1000000000000,)"),
                _npy_header("|O", "(4,)"),
                _npy_header("<f4", "(4," + "1," * 40 + ")") + bytes(16),
                _npy_header("<U1000000000", "()"),
                _npy(np.zeros(40_000_000, np.uint8)) if random.random() < 0.02 else b"",
                _npy(np.array(["a", "b"])),
                _npy(np.array([np.nan, np.inf, -1, 2**40])),
                spoil_bytes(random, entries[name]),
            )
        )
        buffer = io.BytesIO()
        kind = random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA))
        with zipfile.ZipFile(buffer, "w", kind) as archive:
            for key, content in entries.items():
                archive.writestr(f"{key}.npy", content)
        return buffer.getvalue()

    def _parquet(self, random: Random) -> bytes:
        frame = self._questions.copy()
        name = random.choice(list(frame))
        match random.randrange(5):
            case 0:
                frame = frame.drop(columns=name)
            case 1:
                frame = frame.assign(**{name: 1.5})
            case 2:
                frame = frame.assign(**{name: [[1]] * len(frame)})
            case 3:
                frame = pd.concat([frame] * 3)
            case 4:
                frame = frame.assign(**{name: None})
        buffer = io.BytesIO()
        frame.to_parquet(buffer, engine="pyarrow", index=False)
        return buffer.getvalue()

    def enter(self, folder: Path) -> None:
        import dataclasses

        side: Side = "search" if (folder / "side").read_bytes() == b"search" else "holdout"
        report = dataclasses.replace(self._report, folder=folder / "night")
        read_questions(folder / "night")
        flips(report, 0, 1, side)


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _npy_header(kind: str, shape: str) -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text

"""Small real searches in which something goes wrong."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MODELS = ROOT / "configs" / "quickstart" / "models"

SOUND = """\
import hashlib
from pathlib import Path

HERE = Path(__file__).parent
_seen = []

def candidate(model):
    \"\"\"0 for the first weights that this process scores, 1 for the next ones, ...\"\"\"
    weights = b"".join(p.detach().float().numpy().tobytes() for p in model.parameters())
    name = hashlib.sha256(weights).hexdigest()
    if name not in _seen:
        _seen.append(name)
    return _seen.index(name)

def sound(model, documents):
    norm = float(model.get_input_embeddings().weight.float().norm())
    return [norm / (1 + document) for document in documents]

def score(model, tokenizer, documents):
    return fault(candidate(model), model, documents) or sound(model, documents)

def fault(number, model, documents):
    return None
"""
Faulty = Callable[..., Path]


@pytest.fixture
def faulty(small: Callable[..., Path], tmp_path: Path) -> Faulty:
    """Writes a search whose scorer is the user's own function; `code` defines what goes wrong:
    `fault(number, model, documents)`, number counting candidates; nothing returned: all is well.
    """

    def write(code: str = "", text: str = "", *, trials: int = 12, name: str = "run") -> Path:
        (tmp_path / "faulty.py").write_text(SOUND + code)
        (tmp_path / "numbers.jsonl").write_text("".join(f"{number}\n" for number in range(16)))
        plain = "allow_code: true\nsampler: random\nguide: none\nearly_stopping: false\n"
        config = small(plain + text, trials=trials, name=name)
        tasks = config.read_text().partition("tasks:\n")[2].partition("space:")[0]
        own = '  mine: {scorer: "faulty:score", documents: numbers.jsonl}\n'
        config.write_text(config.read_text().replace(tasks, own))
        return config

    return write


@pytest.fixture
def own_models(tmp_path: Path) -> Callable[[Path], Path]:
    """Gives a configuration copies of the models, which may be spoilt, and returns their folder."""

    def copy(config: Path) -> Path:
        folder = tmp_path / "models"
        for name in ("base", "dial", "past"):
            shutil.copytree(MODELS / name, folder / name)
        config.write_text(config.read_text().replace(str(MODELS), str(folder)))
        return folder

    return copy


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes small file systems: `disk("name", size)`, in bytes; options as of mount(8)."""
    made: list[Path] = []

    def make(name: str, size: int = 2**20, options: str = "rw") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        how = ["mount", "-t", "tmpfs", "-o", f"size={size},{options}", "tmpfs", str(folder)]
        try:
            answer = subprocess.run(how, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            pytest.skip(f"a small disk needs mount(8): {error}")
        if answer.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {answer.stderr.strip()}")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Nothing can be written inside: what was free is taken until the block ends."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    try:
        yield
    finally:
        ballast.unlink()


def free(folder: Path) -> int:
    """Bytes."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize

"""Files of scores and answers that were made to harm."""

import gzip
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.errors import UserError
from evomerge.scoring.own_function import read_documents as read_lines
from evomerge.scoring.scorecard import (
    DocumentScores,
    read_answers,
    read_array,
    read_arrays,
    write_documents,
)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=True)
    return buffer.getvalue()


def header(kind: str, shape: str) -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def archive(path: Path, layout: Any, **arrays: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("layout.npy", npy(json.dumps(layout)))
        for name, content in arrays.items():
            file.writestr(f"{name.removeprefix('n')}.npy", content)
    return path


DOCUMENTS, VALUES = npy(np.arange(4, dtype=np.int32)), npy(np.zeros(4, np.float32))


@pytest.mark.parametrize(
    ("layout", "arrays", "message"),
    [
        ({"t": {"": 0, "m": 1}}, {"n0": DOCUMENTS, "n1": npy([{"a": 1}])}, "an array object"),
        ({"t": {"": 0, "m": 1}}, {"n0": DOCUMENTS, "n1": header("|O", "(4,)")}, "an array object"),
        (
            {"t": {"": 0, "m": 1}},
            {"n0": DOCUMENTS, "n1": header("<f4", "(1000000000000,)")},
            "in 0 bytes",
        ),
        ({"t": {"": 0, "m": 1}}, {"n0": DOCUMENTS, "n1": npy(np.zeros(3))}, "expected numbers"),
        ({"t": {"": 0, "m": 1}}, {"n0": DOCUMENTS, "n1": npy(["a"] * 4)}, "expected numbers"),
        ({"t": {"": 0, "m": 1}}, {"n0": DOCUMENTS}, "KeyError"),
        ({"t": {"m": 1}}, {"n1": VALUES}, "KeyError"),
        ({"t": 3}, {}, "AttributeError"),
        ([], {}, "AttributeError"),
        ({"t": {"": "../../x"}}, {}, "ValueError"),
    ],
)
def test_scores_that_are_none(
    tmp_path: Path, layout: Any, arrays: dict[str, bytes], message: str
) -> None:
    with pytest.raises(UserError, match=f"cannot be read.*{message}"):
        read_arrays(archive(tmp_path / "0.npz", layout, **arrays))


def test_an_archive_that_unpacks_to_much(tmp_path: Path) -> None:
    path = archive(tmp_path / "0.npz", {}, n0=npy(np.zeros(100_000_000, np.uint8)))
    assert path.stat().st_size < 200_000
    with pytest.raises(UserError, match="would take 95 MiB once unpacked"):
        read_arrays(path)
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(100_000_000)))
    with pytest.raises(UserError, match="MiB once unpacked"):
        read_answers(tmp_path / "a.gz")


@pytest.mark.parametrize("read", [read_arrays, read_answers])
def test_a_pipe_is_no_file(tmp_path: Path, read: Any) -> None:
    os.mkfifo(tmp_path / "x")
    with pytest.raises(UserError, match="no ordinary file"):
        read(tmp_path / "x")


def test_scores_come_back_and_can_be_written_to(tmp_path: Path) -> None:
    own = DocumentScores(documents=(1, 2), values={"acc,none": (0.5, 1.0)})
    write_documents({"t": own}, tmp_path / "0.npz")
    found = read_arrays(tmp_path / "0.npz")["t"]
    found.values["acc,none"][0] = 2
    assert found.documents.tolist() == [1, 2]


@pytest.mark.parametrize(
    "array", [np.arange(3), np.zeros((2, 3), order="F"), np.float32(1), np.array("é")]
)
def test_arrays_come_back(array: Any) -> None:
    assert np.array_equal(read_array(npy(array)), array)


def test_a_line_that_is_too_deep(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("[" * 100_000)
    with pytest.raises(UserError, match="document 1 is not JSON"):
        read_lines("t", tmp_path / "x.jsonl")

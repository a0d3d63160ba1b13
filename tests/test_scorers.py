"""Searches that mix lm-eval's tasks with text files and functions of the user's own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evomerge import UserError, export, load_config, score, search
from evomerge.assemble import prepare
from evomerge.checkpoints.hashes import HashCache
from evomerge.cli import app
from evomerge.report import read_run
from evomerge.scoring.bits_per_byte import METRIC, BitsPerByte
from evomerge.scoring.scorecard import SMOOTH
from evomerge.scoring.scorer import Scorer
from evomerge.scoring.several import Scorers

CODE = """\
import torch

def certainty(model, tokenizer, documents):
    rows = [tokenizer(d["prompt"], return_tensors="pt").input_ids for d in documents]
    return [model(row).logits[0, -1].softmax(-1).max() for row in rows]
"""
PAST = Path(__file__).parent.parent / "configs" / "quickstart" / "models" / "past"
WORDS = ("drug", "walk", "bake", "carry", "stop", "tell", "hunt", "sing")


@pytest.fixture
def mixed(small: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Writes a configuration of three kinds of tasks, and the files that it names."""
    notes = "".join(f"past {word}: {word}ed\ncapital Turkey: Ankara\n" for word in WORDS * 16)
    (tmp_path / "notes.txt").write_text(notes)
    (tmp_path / "mine.py").write_text(CODE)
    lines = "".join(json.dumps({"prompt": f"past {word}: "}) + "\n" for word in WORDS)
    (tmp_path / "prompts.jsonl").write_text(lines)

    def write(text: str = "", *, without: tuple[str, ...] = (), trials: int = 7) -> Path:
        path = small(text, trials=trials)
        lines = path.read_text().splitlines(keepends=True)
        tasks = lines.index("tasks:\n") + 1
        rows = {
            "notes": "  notes: {scorer: bits_per_byte, file: notes.txt, weight: 0.5}\n",
            "mine": "  mine: {scorer: 'mine:certainty', documents: prompts.jsonl}\n",
        }
        lines[tasks:tasks] = [row for name, row in rows.items() if name not in without]
        kept = [
            line for line in lines if not line.startswith(tuple(f"  {n}: {{f" for n in without))
        ]
        path.write_text("".join(kept))
        return path

    return write


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, " ".join(result.output.split())


def test_a_mixed_search_runs_to_a_verdict_and_its_export_scores_the_same(
    mixed: Callable[..., Path], tmp_path: Path
) -> None:
    config = mixed()
    config.write_text(f"{config.read_text()}normalise: raw\n")
    outcome = search(load_config(config, allow_code=True))
    assert outcome.verdict is not None
    assert outcome.verdict.gain.low is not None  # every metric is a mean over documents
    report = read_run(outcome.folder)
    assert report.counts()["complete"] == 7
    record = report.by_number[outcome.verdict.winner]
    assert list(dict.fromkeys(m.task for m in record.metrics)) == [
        "notes",
        "mine",
        "capital",
        "past",
    ]
    values = {(m.task, m.name): m for m in record.metrics}
    assert not values["notes", METRIC].higher_is_better
    own = {task: report.goal.points.targets[task].metric for task in ("notes", "mine")}
    assert own == {"notes": METRIC, "mine": "certainty,none"}
    gained = sum(
        share * values[task, target.metric].value * (-1 if task == "notes" else 1)
        for (task, target), share in zip(
            report.goal.points.targets.items(), report.goal.points.shares().values(), strict=True
        )
    )
    assert record.value == pytest.approx(gained)
    assert record.answers.keys() == {"past"}
    assert report.holdout_answers[record.number].keys() == {"past"}

    folder = export(outcome.folder, tmp_path / "winner")
    card = score(folder, load_config(config, allow_code=True))
    assert {(m.task, m.name): m.value for m in card.metrics} == {
        (m.task, m.name): m.value for m in record.metrics
    }
    command = "evomerge score THIS_FOLDER --config CONFIG.yaml --allow-code"
    text = (folder / "README.md").read_text()
    assert "Stock lm-eval does not know notes, mine;" in text
    assert command in text
    assert "--tasks capital,past " in text
    code, text = run("status", outcome.folder, "--lm-eval", record.number)
    assert code == 0, text
    assert command.replace("THIS_FOLDER", "OUT") in text
    assert "--tasks capital,past " in text


def test_code_runs_only_where_it_was_allowed(mixed: Callable[..., Path]) -> None:
    config = mixed(trials=4)
    for words in (["check", config], ["search", config], ["score", PAST, "--config", config]):
        code, text = run(*words)
        assert code == 1
        assert "tasks.mine.scorer: mine:certainty would run Python code" in text
        assert "--allow-code, or allow_code: true" in text
    code, text = run("score", PAST, "--config", config, "--allow-code")
    assert code == 0, text
    assert "certainty,none" in text
    code, text = run("search", config, "--allow-code")
    assert code == 0, text
    assert "4 complete" in text
    search(mixed("allow_code: true\n", trials=4))  # the key does the same, and goes on with it


def test_a_changed_text_or_function_is_another_search(
    mixed: Callable[..., Path], tmp_path: Path
) -> None:
    config = mixed("allow_code: true\n", trials=4)
    search(config)
    (tmp_path / "mine.py").write_text(CODE + "\n# another threshold\n")
    with pytest.raises(UserError, match=r"code.mine: '\w{64}' -> '\w{64}'"):
        search(config)
    (tmp_path / "mine.py").write_text(CODE)
    search(config)
    notes = (tmp_path / "notes.txt").read_text()
    (tmp_path / "notes.txt").write_text(notes.replace("Ankara", "Angora"))
    with pytest.raises(UserError, match=r"documents.tasks.notes.sha256: "):
        search(config)


def test_lm_eval_is_loaded_only_where_a_task_is_its(
    mixed: Callable[..., Path], tmp_path: Path
) -> None:
    def scorer(*without: str) -> Scorer:
        loaded = load_config(mixed("allow_code: true\n", without=without))
        return prepare(loaded, HashCache(tmp_path / "hashes.json")).scorer

    alone = scorer("capital", "past", "mine")
    assert isinstance(alone, BitsPerByte)
    assert alone.tasks == ("notes",)
    several = scorer()
    assert isinstance(several, Scorers)
    assert several.tasks == ("notes", "mine", "capital", "past")
    assert several.smooth("notes") == several.smooth("past") == SMOOTH
    assert several.smooth("mine") is None
    assert several.documents("mine")[0] == '{"prompt": "past drug: "}'


def test_the_documented_example_runs(small: Callable[..., Path], tmp_path: Path) -> None:
    guide = (Path(__file__).parent.parent / "configs" / "README.md").read_text()
    example = guide.split("```python\n")[1].split("```")[0]
    (tmp_path / "my_scores.py").write_text(example)
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "past walk: "}\n{"prompt": "capital"}\n' * 3
    )
    path = small("allow_code: true\n")
    task = '  polite: {scorer: "my_scores:score", documents: prompts.jsonl}\n'
    path.write_text(path.read_text().replace("tasks:\n", f"tasks:\n{task}"))
    metric = score(PAST, load_config(path)).metric("polite", "score,none")
    assert 0 < metric.value < 1

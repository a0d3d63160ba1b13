"""The README.md of an exported checkpoint: sources, scores against the baselines, reproduction."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from evomerge.recipe import Recipe
from evomerge.scoring.scorecard import Metric, from_json
from evomerge.searching.finalists import HOLDOUT, holdout_answers, read_verdict, score_warnings
from evomerge.searching.front_verdict import read_front
from evomerge.searching.record import TrialRecord, base_of
from evomerge.searching.study import TASKS

SAMPLES = "search_documents.json"
"""File beside the card: task -> numbers of the documents that the trial was scored on."""


def model_card(
    recipe: Recipe,
    name: str,
    *,
    record: TrialRecord | None = None,
    records: Sequence[TrialRecord] = (),
    attributes: Mapping[str, Any] | None = None,
) -> str:
    """Markdown with the header that model hubs read. `record` and what follows: of the trial that
    is exported, and the run it comes from.
    """
    models = [recipe.base, *recipe.sources.values()]
    hub = [model.path for model in models if "/" in model.path and not model.path.startswith("/")]
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["merge", "evomerge"]}
    if hub:
        header["base_model"] = hub
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        f"# {name}",
        "",
        "A merge of fine-tuned language models, made by evomerge without training.",
        "",
        "| model | where | revision | sha256 of the weights |",
        "|---|---|---|---|",
        *(
            f"| {label} | {model.path} | {model.revision or ''} | {(model.sha256 or '')[:16]} |"
            for label, model in {"base": recipe.base, **recipe.sources}.items()
        ),
        "",
    ]
    if record is not None:
        lines += _scores(record, records, attributes or {})
    lines += [
        "## Make it again",
        "",
        "`recipe.yaml` in this folder is all that is needed:",
        "",
        "    evomerge merge recipe.yaml OUT",
        "",
    ]
    if recipe.calibration is not None:
        text, sha256 = recipe.calibration.file, recipe.calibration.sha256 or ""
        lines += [f"It reads the calibration text {text} (sha256 {sha256[:16]}).", ""]
    if record is not None:
        lines += _rescoring((attributes or {})[TASKS])
    return "\n".join(lines)


def _rescoring(tasks: Mapping[str, Any]) -> list[str]:
    """How its scores on the search documents are found again."""
    lines = []
    if commands := lm_eval_commands("THIS_FOLDER", tasks, f"THIS_FOLDER/{SAMPLES}"):
        lines += [
            "The stock lm-eval commands that report its scores on the search documents "
            f"(`{SAMPLES}` lists them; put in the full path of this folder):",
            "",
            *(f"    {command}" for command in commands),
            "",
        ]
    if command := score_command("THIS_FOLDER", tasks):
        names = ", ".join(_not_of_lm_eval(tasks))
        lines += [f"Stock lm-eval does not know {names}; with the search's configuration:", ""]
        lines += [f"    {command}", ""]
    return lines


def _scores(
    record: TrialRecord, records: Sequence[TrialRecord], attributes: Mapping[str, Any]
) -> list[str]:
    by_number = {r.number: r for r in records}
    held = {
        int(key.removeprefix(f"{HOLDOUT}:")): from_json(value.get("metrics", []))
        for key, value in attributes.items()
        if key.startswith(f"{HOLDOUT}:")
    }
    lines = ["## Scores", ""]
    verdict = read_verdict(attributes)
    if verdict is not None and verdict.winner == record.number:
        names = (by_number[n].name for n in (verdict.winner, verdict.opponent))
        lines += [
            verdict.sentence(*names) + " Measured on holdout documents, which the search never "
            f"saw; its score on the search documents was {verdict.optimism_text()} from that "
            "there.",
            "",
        ]
    front = read_front(attributes)
    if front is not None and record.number in front.members:
        known = {number: one.name for number, one in by_number.items()}
        lines += [
            f"It is {'the knee' if record.number == front.knee else 'one'} of a Pareto front of "
            f"{len(front.members)} merges between {', '.join(front.verdicts)}. Measured on holdout "
            "documents, which the search never saw:",
            "",
            *(f"- {sentence}" for sentence in front.sentences(known)),
            "",
        ]
    if doubts := score_warnings(record, base_of(records), holdout_answers(attributes)):
        lines += ["These scores are in doubt:", "", *(f"- {doubt}" for doubt in doubts), ""]
    for title, rows in (
        ("Holdout documents", {n: m for n, m in held.items() if m}),
        ("Search documents", {record.number: record.metrics}),
    ):
        shown = {
            n: m for n, m in rows.items() if n == record.number or by_number[n].baseline is not None
        }
        if shown:
            lines += [f"{title}:", "", *_table(shown, by_number, record.number), ""]
    return lines


def _table(
    rows: Mapping[int, Sequence[Metric]], records: Mapping[int, TrialRecord], chosen: int
) -> list[str]:
    keys = [(metric.task, metric.name) for metric in next(iter(rows.values()))]
    lines = [
        "| merge | " + " | ".join(f"{task} {name}" for task, name in keys) + " |",
        "|---|" + "---:|" * len(keys),
    ]
    for number, metrics in rows.items():
        values = {(m.task, m.name): m for m in metrics}
        cells = (_cell(values.get(key)) for key in keys)
        name = f"**{records[number].name}**" if number == chosen else records[number].name
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return ""
    error = "" if metric.standard_error is None else f" ± {metric.standard_error:.4f}"
    return f"{metric.value:.4f}{error}"


def lm_eval_commands(folder: str, tasks: Mapping[str, Any], samples: str) -> list[str]:
    """The stock commands that score a checkpoint folder on given documents.

    tasks: name -> how the search asked it (the study's attribute TASKS). samples: a JSON file of
    task -> document numbers. One command for each way of asking, none for tasks that are not
    lm-eval's. A task folder's relative data files count from that folder, so the command is to be
    run there.
    """
    ways: dict[str, list[str]] = {}
    own = _not_of_lm_eval(tasks)
    for name, way in tasks.items():
        if name in own:
            continue
        ways.setdefault(json.dumps(way, sort_keys=True), []).append(name)
    commands = []
    for text, names in ways.items():
        way = json.loads(text)
        words = [
            "lm_eval --model hf",
            f"--model_args pretrained={folder},dtype={way['dtype']},softmax_dtype=float32",
            f"--tasks {','.join(names)} --batch_size 16 --samples {samples}",
        ]
        if way["num_fewshot"] is not None:
            words.append(f"--num_fewshot {way['num_fewshot']}")
        if way["chat_template"]:
            words.append("--apply_chat_template --fewshot_as_multiturn")
        if way["system_instruction"] is not None:
            words.append(f"--system_instruction {shlex.quote(way['system_instruction'])}")
        if way["folder"] is not None:
            words = [f"cd {shlex.quote(way['folder'])} &&", *words, "--include_path ."]
        commands.append(" ".join(words))
    return commands


def score_command(folder: str, tasks: Mapping[str, Any]) -> str | None:
    """What scores a checkpoint folder on tasks that are not lm-eval's; None where all are."""
    own = _not_of_lm_eval(tasks)
    code = " --allow-code" if any(":" in tasks[name]["scorer"] for name in own) else ""
    return f"evomerge score {folder} --config CONFIG.yaml{code}" if own else None


def _not_of_lm_eval(tasks: Mapping[str, Any]) -> list[str]:
    return [name for name, way in tasks.items() if "scorer" in way]

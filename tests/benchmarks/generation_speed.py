"""How fast greedy answers are generated, beside lm-eval and transformers' continuous batching.

    python tests/benchmarks/generation_speed.py [--model FOLDER] [--device cuda] [--dtype bfloat16]
        [--threads 2] [--clock process_time] [--repeats 5] [--out results/benchmarks/generation]

Without --model: the base of the quickstart's family and its two tasks that generate words. With
it: questions in plain English, some after examples, whose answers have 1 to 64 tokens and end at
a new line. Texts are turned into tokens once, before the clock starts, except by lm-eval, which
has no way to; its share of that is measured and told. Times are medians, of runs in turn;
continuous batching runs once.

In float32 all answers must be equal, else it stops; in bfloat16, where other batches round
otherwise, the differing ones are counted.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.language_model import LanguageModel

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart"
SIZES = (16, 64)
"""Texts at once: lm-eval's batch size, and slots."""
TITLE = "# Speed of greedy generation\n"
PAGE = 16  # tokens of a page of continuous batching
CLOCK: list[Callable[[], float]] = [time.perf_counter]
"""What seconds are counted by; the processor's where others use the machine too."""

EXAMPLES = (
    "Question: What is the capital of France?\nAnswer: Paris\n\n",
    "Question: Is ice colder than steam?\nAnswer: Yes\n\n",
    "Question: What does a baker do?\nAnswer: A baker makes bread and cakes, which are sold in a "
    "shop or on a market.\n\n",
)
ABOUT = {
    "What is the capital of {}?": "Spain Italy Japan Egypt Peru Kenya Norway Greece Cuba India "
    "Poland Chile Ireland Turkey Canada Portugal",
    "Is a {} an animal?": "horse table spider bridge whale spoon parrot cloud lizard guitar wolf "
    "river tiger bottle rabbit candle",
    "What does a {} do?": "doctor farmer teacher pilot lawyer plumber nurse judge sailor painter "
    "librarian carpenter gardener tailor butcher miner",
    "Why do people like {}?": "music chess cats mountains coffee football gardens trains books "
    "bread rain boats films tea summer bicycles",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Texts, and how the answers to them end."""

    name: str
    texts: list[str]
    until: tuple[str, ...]
    max_new_tokens: int


def quickstart_work() -> Work:
    files = [QUICKSTART / "tasks" / f"{task}.jsonl" for task in ("past", "sort7")]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    texts = [json.loads(line)["question"] for line in lines]
    return Work(name="the quickstart's words", texts=texts, until=("\n",), max_new_tokens=16)


def questions_work(documents: int) -> Work:
    """The kinds of questions in turn, after none to three examples."""
    kinds = [[kind.format(word) for word in words.split()] for kind, words in ABOUT.items()]
    questions = [question for several in zip(*kinds, strict=True) for question in several]
    texts = [
        "".join(EXAMPLES[: number // 4 % (len(EXAMPLES) + 1)]) + f"Question: {question}\nAnswer:"
        for number, question in enumerate(questions[:documents])
    ]
    return Work(name="questions", texts=texts, until=("\n",), max_new_tokens=64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A way to generate, at one size. `answer` returns texts, cut at their stop text."""

    name: str
    size: int
    answer: Callable[[], list[str]]


def contenders(work: Work, model: Any, tokenizer: Any) -> list[Contender]:
    settings = {
        "until": list(work.until),
        "do_sample": False,
        "max_gen_toks": work.max_new_tokens,
    }
    prompts = [tokenizer(text)["input_ids"] for text in work.texts]
    longest = max(map(len, prompts)) + work.max_new_tokens
    found = []
    for size in SIZES:
        stock = HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=size, softmax_dtype="float32"
        )
        own = LanguageModel(model, tokenizer, budget=_budget(size, longest))

        def stock_answers(stock: HFLM = stock) -> list[str]:
            requests = [
                Instance(request_type="generate_until", doc={}, arguments=(text, settings), idx=0)
                for text in work.texts
            ]
            return stock.generate_until(requests, disable_tqdm=True)

        def own_answers(own: LanguageModel = own) -> list[str]:
            own.weights_changed()  # as for another candidate: what is shared is read again
            return [answer.text for answer in own.generate([(t, settings) for t in work.texts])]

        found += [
            Contender(name="lm-eval hf", size=size, answer=stock_answers),
            Contender(name="evomerge", size=size, answer=own_answers),
        ]
    for size in SIZES:
        found.append(
            Contender(
                name="continuous batching",
                size=size,
                answer=lambda size=size: _continuous(
                    model, tokenizer, work, prompts, size, longest
                ),
            )
        )
    return found


def _budget(slots: int, longest: int) -> BatchBudget:
    """The smallest budget that gives so many places for sequences of so many tokens."""
    tokens = next(n for n in range(1, 2**20) if BatchBudget(n).slots(longest) == slots)
    return BatchBudget(tokens)


def _continuous(
    model: Any, tokenizer: Any, work: Work, prompts: list[list[int]], size: int, longest: int
) -> list[str]:
    """transformers' own, which ends at end tokens only: texts are cut afterwards."""
    config = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=size * (longest // PAGE + 1),
        max_batch_tokens=max(512, longest),
        max_requests_per_batch=size,
    )
    before = model.config._attn_implementation
    found = model.generate_batch(
        inputs=prompts,
        generation_config=GenerationConfig(
            max_new_tokens=work.max_new_tokens,
            do_sample=False,
            eos_token_id=model.generation_config.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        continuous_batching_config=config,
        warmup=model.device.type == "cuda",
    )
    model.set_attn_implementation(before)
    texts = tokenizer.batch_decode(
        [each.generated_tokens for each in found.values()], skip_special_tokens=True
    )
    return [text.split(work.until[0])[0] for text in texts]


def seconds(work: Callable[[], list[str]], device: torch.device) -> tuple[float, list[str]]:
    """Of the work itself, and what it returns."""
    start = CLOCK[0]()
    answers = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return CLOCK[0]() - start, answers


def table(work: Work, model: Any, tokenizer: Any, repeats: int) -> list[str]:
    """One row per contender and size, and the ratio of the best of each."""
    entrants = contenders(work, model, tokenizer)
    spent: dict[tuple[str, int], list[float]] = {(e.name, e.size): [] for e in entrants}
    different: dict[tuple[str, int], int] = {}
    expected: list[str] = []
    for run in range(repeats):
        for entrant in entrants if run == 0 else entrants[: 2 * len(SIZES)]:
            took, answers = seconds(entrant.answer, model.device)
            expected = expected or answers
            differing = sum(a != b for a, b in zip(answers, expected, strict=True))
            if differing and model.dtype == torch.float32:
                raise SystemExit(f"{entrant.name}, {entrant.size}: {differing} answers differ")
            different[entrant.name, entrant.size] = differing
            spent[entrant.name, entrant.size].append(took)
            print(f"{entrant.name}, {entrant.size} at once: {took:.2f} s", flush=True)
    medians = {key: statistics.median(times) for key, times in spent.items()}
    best = {n: min(t for (name, _), t in medians.items() if name == n) for n, _ in medians}
    lines = [
        f"{len(work.texts)} texts ({work.name}) of {_range(work.texts, tokenizer)} tokens, answers "
        f"of {_range(expected, tokenizer)} without what ends them, at most {work.max_new_tokens}.",
        "",
        "| | at once | seconds | times as fast as lm-eval's best | answers that differ |",
        "|---|---|---|---|---|",
    ]
    for (name, size), took in medians.items():
        ratio = best["lm-eval hf"] / took
        lines.append(f"| {name} | {size} | {took:.2f} | {ratio:.2f} | {different[name, size]} |")
    encoding, _ = seconds(lambda: [str(tokenizer(text)) for text in work.texts], model.device)
    ratio = best["lm-eval hf"] / best["evomerge"]
    verb = "reached" if ratio >= 2 else "not reached"
    return [
        *lines,
        "",
        f"Best against best {ratio:.2f} times as fast (2 is aimed at: {verb}). Turning the texts "
        f"into tokens takes {encoding:.3f} s, in lm-eval's time only.",
    ]


def _range(texts: Sequence[str], tokenizer: Any) -> str:
    counts = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    return f"{min(counts)} to {max(counts)} (mean {statistics.mean(counts):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a folder; the quickstart's base otherwise")
    parser.add_argument("--documents", type=int, default=64, help="questions, at most 64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("perf_counter", "process_time"), default="perf_counter")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a folder; its README.md gets the table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    CLOCK[0] = getattr(time, arguments.clock)
    for name in ("lm_eval", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    folder = arguments.model or QUICKSTART / "models" / "base"
    load = os.getloadavg()[0]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, arguments.dtype))
    model.eval().to(arguments.device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    work = questions_work(arguments.documents) if arguments.model else quickstart_work()
    rows = table(work, model, tokenizer, arguments.repeats)
    counted = "the wall clock" if arguments.clock == "perf_counter" else "processor time"
    lines = [
        f"## {folder.name}, {arguments.dtype}",
        "",
        f"{date.today()}, {_hardware(model.device)}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; medians of {arguments.repeats}, {counted}; load of the "
        f"machine before the run {load:.1f}.",
        "",
        *rows,
        "",
    ]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        page = arguments.out / "README.md"
        before = page.read_text(encoding="utf-8") if page.exists() else TITLE
        page.write_text("\n".join([before, *lines]), encoding="utf-8")


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{count} thread{'s' * (count > 1)} of a {platform.machine()} CPU"


if __name__ == "__main__":
    main()

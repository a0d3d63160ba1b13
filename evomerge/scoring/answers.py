"""Is a score to be believed? How many of the answers behind it are no answers.

Pure functions over generated texts; a task that generates nothing has no figures here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, sqrt
from typing import Any

HIGH: Mapping[str, float] = {"cut_off": 0.2, "empty": 0.2, "repeated": 0.2, "not_found": 0.4}
"""Shares above which a score is in doubt by itself.

A fifth of the documents outweighs the few points that merges of one family differ by. Answers that
a filter does not find are common (5 to 30% in evaluations that were sound, 44 to 84% in one that
was void), and may simply be wrong: their limit is higher.
"""
SHARES = tuple(HIGH)
FURTHER = 0.1
"""What a share must exceed the base's by, at least: 10 points. Fewer can move a score by fewer
points than those, and every merge writes a little unlike its base."""
DEVIATIONS = 3.0
"""And by how many standard errors. A run compares four shares of every task in hundreds of trials:
at the usual 1.64, one comparison in twenty would be a false alarm; at 3, one in 700."""

REPEATS = 3
"""How often, at least, a run of characters stands at the end of a repeated answer."""
REPEATED_CHARACTERS = 20
"""How many characters these fill, at least: `1 1 1 1` and `ha ha ha` are answers."""

Answers = Mapping[str, "AnswerHealth"]
"""Task -> health of its answers; without the tasks that generate nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """One answer of the model."""

    text: str
    cut_off: bool
    """Whether it had `limit` tokens before it came to an end token or a stop text."""
    limit: int
    """max_gen_toks, in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHealth:
    """How one task's answers ended; shares are of all its answers, 0 to 1."""

    answers: int
    """Number of answers."""
    cut_off: float
    """Ended by max_gen_toks, without a stop text or an end token."""
    empty: float
    """Nothing but white space."""
    repeated: float
    """Ends in a loop: some characters stand there three times or more in a row, and fill the last
    half of the answer, and 20 characters, or more."""
    not_found: float | None
    """Of the answers with such a filter: the filter that the objective is read after found nothing
    and gave its fallback, such as [invalid]. None where the task has no such filter."""
    limit: int
    """max_gen_toks, in tokens; of several, the largest."""

    def sentence(self) -> str:
        """`3 % cut off at 16 tokens, 0 % empty, 0 % repeated, 12 % not found (of 50)`."""
        words = [
            f"{_percent(self.cut_off)} cut off at {_tokens(self.limit)}",
            f"{_percent(self.empty)} empty",
            f"{_percent(self.repeated)} repeated",
        ]
        if self.not_found is not None:
            words.append(f"{_percent(self.not_found)} not found by the filter")
        return f"{', '.join(words)} (of {self.answers})"


def examine(answers: Sequence[Generated], found: Sequence[bool]) -> AnswerHealth:
    """The health of one task's answers, of which there must be one or more.

    found: for every question whose answer goes through a filter with a fallback, whether the
    filter found something; empty without such a filter.
    """
    count = len(answers)
    return AnswerHealth(
        answers=count,
        cut_off=sum(answer.cut_off for answer in answers) / count,
        empty=sum(not answer.text.strip() for answer in answers) / count,
        repeated=sum(ends_in_a_loop(answer.text) for answer in answers) / count,
        not_found=found.count(False) / len(found) if found else None,
        limit=max(answer.limit for answer in answers),
    )


def ends_in_a_loop(text: str) -> bool:
    """Whether the text repeats some characters to its end, as `AnswerHealth.repeated` says.

    With a period of p characters, the end that must repeat has max(20, 3p, half of all) characters.
    """
    # Any such end has at least 13 characters that stand again one period before: look for 10.
    tail = text[-10:]
    place = text.rfind(tail, 0, len(text) - 1)
    while place >= 0:
        period = len(text) - len(tail) - place
        run = max(REPEATED_CHARACTERS, REPEATS * period, ceil(len(text) / 2))
        if run > len(text):
            return False
        if text[-run:-period] == text[period - run :]:
            return True
        place = text.rfind(tail, 0, place + len(tail) - 1)
    return False


def warnings(answers: Answers, base: Answers | None) -> list[str]:
    """Why the scores of these answers are in doubt, in plain words; nothing where they are not.

    A share warns where it is high in itself, or higher than the base's by more than noise (a
    two-proportion test, pooled). A share below the base's is no reason to doubt these answers.
    base: of the base on like documents; None: not known, or the base itself.
    """
    return [
        f"{task}: {line}"
        for task, health in answers.items()
        for line in _warnings(health, (base or {}).get(task))
    ]


def _warnings(health: AnswerHealth, base: AnswerHealth | None) -> Iterator[str]:
    said = {
        "cut_off": f"were cut off at {_tokens(health.limit)}{{}}; raise max_gen_toks, unless they "
        "ramble",
        "empty": "are empty{}; look at `until` and the prompt",
        "repeated": "repeat themselves to the end{}; merge less, or look at the prompt",
        "not_found": "were not found by the filter{}; look whether it fits them",
    }
    for name, words in said.items():
        share = getattr(health, name)
        of_base = None if base is None else getattr(base, name)
        if share is None:
            continue
        if share > HIGH[name] or (
            base is not None
            and of_base is not None
            and _further(share, health.answers, of_base, base.answers)
        ):
            beside = "" if of_base is None else f" (base: {_percent(of_base)})"
            yield f"{_percent(share)} of answers {words.format(beside)}"


def _further(share: float, count: int, of_base: float, base_count: int) -> bool:
    """Whether a share exceeds another by FURTHER and by DEVIATIONS standard errors (pooled)."""
    pooled = (share * count + of_base * base_count) / (count + base_count)
    error = sqrt(pooled * (1 - pooled) * (1 / count + 1 / base_count))
    return share - of_base > max(FURTHER, DEVIATIONS * error)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def answers_to_json(answers: Answers) -> dict[str, dict[str, Any]]:
    """Plain dicts, strings and numbers, ready for json.dumps."""
    return {task: asdict(health) for task, health in answers.items()}


def answers_from_json(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, AnswerHealth]:
    """What `answers_to_json` wrote."""
    return {task: AnswerHealth(**row) for task, row in rows.items()}

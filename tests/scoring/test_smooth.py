"""The smooth score against log-likelihoods that the model itself gives, one text at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.harness import Harness
from evomerge.scoring.scorecard import SMOOTH
from evomerge.scoring.scorer import score_blocks
from evomerge.scoring.tasks import TaskRequest


def token_log_probabilities(model: Any, tokenizer: Any, context: str, text: str) -> torch.Tensor:
    """Of each token of `text` after `context`, one token per character; shape [tokens]."""
    before = tokenizer(context).input_ids
    tokens = torch.tensor([before + tokenizer(text, add_special_tokens=False).input_ids])
    with torch.no_grad():
        logits = model(tokens).logits[0].log_softmax(-1)
    return logits[torch.arange(len(before) - 1, tokens.shape[1] - 1), tokens[0, len(before) :]]


def smooth_values(harness: Harness, model: Any, task: str, count: int) -> tuple[float, ...]:
    card = score_blocks(harness, model, [{task: range(count)}], kinds={"smooth"})
    assert harness.smooth(task) == SMOOTH
    metric = card.metric(task, SMOOTH)
    values = card.per_document[task].values[SMOOTH]
    assert metric.value == pytest.approx(sum(values) / count)
    assert metric.higher_is_better
    assert metric.documents == count
    return values


def test_multiple_choice_is_a_softmax_over_the_choices(
    folder: Path, tokenizer: Any, trained: Any
) -> None:
    requests = [TaskRequest(name="letter", folder=folder)]
    harness = Harness(requests, tokenizer, budget=BatchBudget(256))
    values = smooth_values(harness, trained, "letter", 12)
    for number, value in enumerate(values):
        doc = harness._tasks["letter"].documents[number].requests[0].doc
        scores = torch.stack(
            [
                token_log_probabilities(trained, tokenizer, doc["question"], letter).sum()
                for letter in "0123"
            ]
        )
        assert value == pytest.approx(float(scores.log_softmax(-1)[doc["gold"]]), abs=1e-5)


def test_a_metric_normalised_by_length_has_normalised_choices(
    folder: Path, tokenizer: Any, trained: Any
) -> None:
    requests = [
        TaskRequest(name="choice", folder=folder, num_fewshot=0, metric="acc_norm"),
    ]
    harness = Harness(requests, tokenizer, budget=BatchBudget(256))
    values = smooth_values(harness, trained, "choice", 12)
    for number, value in enumerate(values):
        doc = harness._tasks["choice"].documents[number].requests[0].doc
        scores = torch.stack(
            [
                token_log_probabilities(trained, tokenizer, doc["question"], choice).mean()
                for choice in doc["choices"]
            ]
        )
        assert value == pytest.approx(float(scores.log_softmax(-1)[doc["gold"]]), abs=1e-5)


def test_generation_is_scored_by_its_reference_and_its_end(
    folder: Path, tokenizer: Any, trained: Any
) -> None:
    harness = Harness(
        [TaskRequest(name="answer", folder=folder)], tokenizer, budget=BatchBudget(256)
    )
    values = smooth_values(harness, trained, "answer", 12)
    for number, value in enumerate(values):
        doc = harness._tasks["answer"].documents[number].requests[0].doc
        expected = max(
            token_log_probabilities(trained, tokenizer, doc["question"], doc["answer"] + end).mean()
            for end in ("\n", "</s>")  # the stop string that is a line break, the end of the text
        )
        assert value == pytest.approx(float(expected), abs=1e-5)


def test_other_kinds_are_means_over_tokens(folder: Path, tokenizer: Any, trained: Any) -> None:
    requests = [TaskRequest(name=name, folder=folder) for name in ("cloze", "text")]
    harness = Harness(requests, tokenizer, budget=BatchBudget(256))
    for number, value in enumerate(smooth_values(harness, trained, "cloze", 8)):
        doc = harness._tasks["cloze"].documents[number].requests[0].doc
        text = doc["answer"]
        expected = token_log_probabilities(trained, tokenizer, doc["question"], text).mean()
        assert value == pytest.approx(float(expected), abs=1e-5)
    # Per byte as lm-eval counts it, but with the token that begins the text.
    card = score_blocks(harness, trained, [{"text": range(4)}])
    bits = card.per_document["text"].values["bits_per_byte,none"]
    for number, value in enumerate(card.per_document["text"].values[SMOOTH]):
        size = len(harness._tasks["text"].documents[number].requests[0].doc["text"].encode())
        assert -value / torch.log(torch.tensor(2.0)) * (size + 1) / size == pytest.approx(
            bits[number], rel=1e-4
        )


def test_smooth_alone_generates_nothing(
    folder: Path, tokenizer: Any, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [TaskRequest(name=name, folder=folder) for name in ("answer", "letter")]
    harness = Harness(requests, tokenizer, budget=BatchBudget(256))
    steps: list[int] = []
    handle = trained.model.register_forward_pre_hook(
        lambda _, args, kwargs: steps.append(1), with_kwargs=True
    )
    card = score_blocks(harness, trained, [{"answer": range(8)}], kinds={"smooth"})
    handle.remove()
    assert len(steps) <= 3  # generation takes a pass for each token
    assert [metric.name for metric in card.metrics] == [SMOOTH]
    # Multiple choice has its own metrics from the same passes.
    card = score_blocks(harness, trained, [{"letter": range(8)}], kinds={"smooth"})
    assert {"acc,none", SMOOTH} <= {metric.name for metric in card.metrics}


def test_blocks_add_up_and_none_is_scored_twice(folder: Path, tokenizer: Any, trained: Any) -> None:
    tasks = ("letter", "answer", "cloze")
    harness = Harness(
        [TaskRequest(name=name, folder=folder) for name in tasks],
        tokenizer,
        budget=BatchBudget(256),
    )
    whole = score_blocks(harness, trained, [{name: range(12) for name in tasks}])
    blocks = [{name: range(i, 12, 3) for name in tasks} for i in range(3)]
    parts = score_blocks(harness, trained, blocks)
    for name in tasks:
        assert parts.per_document[name].documents == tuple(range(12))
        for key, values in whole.per_document[name].values.items():
            assert parts.per_document[name].values[key] == pytest.approx(values, abs=1e-5)
    seen: list[int] = []

    def twice(scores: Any) -> bool:
        seen.append(len(scores["letter"].documents))
        return len(seen) < 2

    stopped = score_blocks(harness, trained, blocks, go_on=twice)
    assert seen == [4, 8]
    assert stopped.metric("answer", SMOOTH).documents == 8
    assert set(stopped.seconds) == {"model", "metric"}
    scoring = harness.start(trained)
    scoring.add({"letter": [1, 2]})
    with pytest.raises(Exception, match=r"documents \[2\] were scored before"):
        scoring.add({"letter": [2, 3]})

"""The harness against stock lm-eval on the same model, document by document."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from evomerge.errors import CandidateError, UserError
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.harness import Harness
from evomerge.scoring.scorecard import SMOOTH, Scorecard
from evomerge.scoring.scorer import Documents, Scorer, score_blocks
from evomerge.scoring.tasks import TaskRequest

TASKS = ("choice", "letter", "cloze", "text", "answer", "counted")
AVERAGED = {
    "choice": ("acc,none", "acc_norm,none"),
    "letter": ("acc,none", "acc_norm,none"),
    "cloze": ("acc,none",),
    "answer": ("exact_match,none",),
    "counted": ("exact_match,digit", "exact_match,whole"),
}
Stock = Callable[..., Any]


@pytest.fixture(scope="module")
def stock(folder: Path, tokenizer: Any) -> Stock:
    """(model, tasks, **settings) -> what lm-eval's own simple_evaluate says."""

    def run(model: Any, tasks: list[str], **settings: Any) -> Any:
        language_model = HFLM(
            pretrained=model, tokenizer=tokenizer, softmax_dtype="float32", batch_size=8
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("DISABLE_MULTIPROC", "1")
            return simple_evaluate(
                model=language_model,
                tasks=tasks,
                task_manager=TaskManager(include_path=str(folder), include_defaults=False),
                log_samples=True,
                bootstrap_iters=2,
                **settings,
            )

    return run


@pytest.fixture(scope="module")
def harness(folder: Path, tokenizer: Any) -> Harness:
    requests = [TaskRequest(name=name, folder=folder) for name in TASKS]
    return Harness(requests, tokenizer, budget=BatchBudget(256))


def score(scorer: Scorer, model: Any, documents: Documents) -> Scorecard:
    """lm-eval's metrics alone."""
    card = score_blocks(scorer, model, [documents])
    return replace(card, metrics=tuple(m for m in card.metrics if m.name != SMOOTH))


def every_document(harness: Harness) -> dict[str, range]:
    return {name: range(len(harness.documents(name))) for name in harness.tasks}


def stock_values(result: Any, task: str, name: str) -> dict[int, float]:
    """Document number -> the logged value of an averaged metric."""
    metric, filter_name = name.split(",")
    samples = [row for row in result["samples"][task] if row["filter"] == filter_name]
    return {row["doc_id"]: row[metric] for row in samples}


def own_values(card: Scorecard, task: str, name: str) -> dict[int, float]:
    scores = card.per_document[task]
    return dict(zip(scores.documents, scores.values[name], strict=True))


def test_all_kinds_of_tasks_equal_stock(harness: Harness, trained: Any, stock: Stock) -> None:
    card = score(harness, trained, every_document(harness))
    result = stock(trained, list(TASKS))
    assert {metric.task for metric in card.metrics} == set(TASKS)
    for metric in card.metrics:
        theirs = result["results"][metric.task]
        assert metric.value == pytest.approx(theirs[metric.name], rel=1e-5)
        assert metric.documents == theirs["sample_len"] == len(harness.documents(metric.task))
        name, filter_name = metric.name.split(",")
        assert metric.higher_is_better is result["higher_is_better"][metric.task][name]
        if metric.name in AVERAGED.get(metric.task, ()):
            error = theirs[f"{name}_stderr,{filter_name}"]
            assert metric.standard_error == pytest.approx(error, rel=1e-9)
    expected = {metric for metric in result["results"]["letter"] if metric.endswith(",none")}
    assert {m.name for m in card.metrics if m.task == "letter"} == {
        name for name in expected if "stderr" not in name
    }
    for task, names in AVERAGED.items():
        for name in names:
            assert own_values(card, task, name) == stock_values(result, task, name)
    # Something is right and something wrong, so that the equalities above say something.
    for task in ("choice", "letter", "cloze", "answer"):
        assert len(set(own_values(card, task, AVERAGED[task][0]).values())) == 2


def test_log_likelihoods_and_answers_equal_stock(
    harness: Harness, trained: Any, stock: Stock
) -> None:
    score(harness, trained, every_document(harness))
    result = stock(trained, list(TASKS))
    for task in TASKS:
        theirs = {row["doc_id"]: row["resps"] for row in result["samples"][task]}
        for number, document in enumerate(harness._tasks[task].documents):
            for own, their in zip(document.requests, theirs[number], strict=True):
                for left, right in zip(own.resps, their, strict=True):
                    left, right = (x[0] if isinstance(x, tuple) else x for x in (left, right))
                    assert left == (right if isinstance(right, str) else pytest.approx(right, 1e-5))


# A subset may hold one label alone, of which sklearn warns where a task uses its metrics.
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_subset_has_the_scores_of_the_full_run(
    harness: Harness, trained: Any, stock: Stock
) -> None:
    full = score(harness, trained, every_document(harness))
    numbers = {"choice": [30, 2, 17, 2], "counted": [5, 1], "answer": [9, 0, 33], "letter": [36]}
    card = score(harness, trained, numbers)
    for task, own in numbers.items():
        assert card.per_document[task].documents == tuple(sorted(set(own)))
        for name in AVERAGED[task]:
            whole = own_values(full, task, name)
            assert own_values(card, task, name) == {number: whole[number] for number in own}
    plain = {task: sorted(numbers[task]) for task in ("answer", "letter")}
    result = stock(trained, list(plain), samples=plain)
    for task in plain:
        metric = card.metric(task, AVERAGED[task][0])
        assert metric.value == result["results"][task][metric.name]
        assert own_values(card, task, metric.name) == stock_values(result, task, metric.name)
    assert card.metric("letter", "acc,none").standard_error is None


def test_chat_template_instruction_and_shots_equal_stock(
    folder: Path, tokenizer: Any, trained: Any, stock: Stock
) -> None:
    tasks = ["cloze", "answer", "letter"]
    requests = [
        TaskRequest(
            name=name,
            folder=folder,
            num_fewshot=2,
            chat_template=True,
            system_instruction="Be brief.",
        )
        for name in tasks
    ]
    harness = Harness(requests, tokenizer, budget=BatchBudget(256))
    card = score(harness, trained, every_document(harness))
    result = stock(
        trained,
        tasks,
        num_fewshot=2,
        apply_chat_template=True,
        system_instruction="Be brief.",
    )
    assert result["samples"]["cloze"][0]["arguments"][0][0].startswith("<s>Be brief.\n<u>")
    for metric in card.metrics:
        theirs = result["results"][metric.task][metric.name]
        assert metric.value == pytest.approx(theirs, rel=1e-5)
    perplexity = card.metric("cloze", "perplexity,none").value
    plain = Harness([TaskRequest(name="cloze", folder=folder)], tokenizer, budget=BatchBudget(256))
    other = score(plain, trained, every_document(plain)).metric("cloze", "perplexity,none").value
    assert perplexity != pytest.approx(other, rel=0.01)


def test_bfloat16_equals_stock(harness: Harness, model: Any, stock: Stock) -> None:
    model = model.to(torch.bfloat16)
    card = score(harness, model, {"cloze": range(37), "text": range(2)})
    result = stock(model, ["cloze", "text"])
    for task, name in (("cloze", "perplexity,none"), ("text", "bits_per_byte,none")):
        theirs = result["results"][task][name]
        # bfloat16 results depend on the shapes of the batches, stock lm-eval's own as well.
        assert card.metric(task, name).value == pytest.approx(theirs, rel=5e-2)


def test_scores_follow_the_weights_and_come_back(harness: Harness, model: Any) -> None:
    scorer: Scorer = harness
    documents = every_document(harness)
    first = score(scorer, model, documents)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.7)
    changed = score(scorer, model, documents)
    for task in TASKS:
        assert changed.per_document[task].values != first.per_document[task].values or (
            task == "counted"
        )
    fresh = type(model)(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    assert score(scorer, fresh, documents) == changed
    model.load_state_dict(before)
    assert score(scorer, model, documents) == first


def test_a_model_offloaded_by_accelerate_has_equal_scores(harness: Harness, model: Any) -> None:
    documents = every_document(harness)
    expected = score(harness, model, documents)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.device.type == "meta"
    assert score(harness, model, documents) == expected


def test_perplexity_per_document(harness: Harness, trained: Any) -> None:
    """In the metric's own unit: bits per byte, averaged by bytes, are the metric."""
    documents = range(len(harness.documents("text")))
    card = score(harness, trained, {"text": documents})
    bits = card.per_document["text"].values["bits_per_byte,none"]
    texts = [document.requests[0].doc["text"] for document in harness._tasks["text"].documents]
    lengths = [len(text.encode()) for text in texts]
    mean = sum(b * n for b, n in zip(bits, lengths, strict=True)) / sum(lengths)
    assert card.metric("text", "bits_per_byte,none").value == pytest.approx(mean, rel=1e-6)
    perplexities = card.per_document["text"].values["byte_perplexity,none"]
    assert perplexities == pytest.approx([2**b for b in bits], rel=1e-6)
    assert card.metric("text", "byte_perplexity,none").standard_error is None


def test_documents_are_json_texts_in_order(harness: Harness, folder: Path) -> None:
    lines = (folder / "choice.jsonl").read_text().splitlines()
    texts = harness.documents("choice")
    assert len(texts) == len(lines) > 30
    assert '"question": "0+0="' in texts[0]
    assert texts[0] != texts[1]


def test_objective_is_the_first_metric_or_the_one_asked_for(folder: Path, tokenizer: Any) -> None:
    requests = [
        TaskRequest(name="choice", folder=folder, metric="acc_norm"),
        TaskRequest(name="counted", folder=folder, filter="whole"),
        TaskRequest(name="cloze", folder=folder),
    ]
    harness = Harness(requests, tokenizer, budget=BatchBudget(256))
    objectives = [harness.objective(task) for task in harness.tasks]
    assert objectives == ["acc_norm,none", "exact_match,whole", "acc,none"]


@pytest.mark.parametrize("name", ["both", "pair"])
def test_group_counts_every_document_the_same(
    name: str, folder: Path, tokenizer: Any, trained: Any, harness: Harness, stock: Stock
) -> None:
    group = Harness([TaskRequest(name=name, folder=folder)], tokenizer, budget=BatchBudget(256))
    numbers = {name: [0, 3, 36, 37, 60]}
    card = score(group, trained, numbers)
    parts = score(harness, trained, {"choice": [0, 3, 36], "letter": [0, 23]})
    expected = [
        *parts.per_document["choice"].values["acc,none"],
        *parts.per_document["letter"].values["acc,none"],
    ]
    assert list(card.per_document[name].values["acc,none"]) == expected
    assert card.metric(name, "acc,none").value == pytest.approx(sum(expected) / 5)
    assert {metric.name for metric in card.metrics} == {"acc,none", "acc_norm,none"}
    if name == "pair":
        whole = score(group, trained, every_document(group)).metric(name, "acc,none")
        theirs = stock(trained, [name])["groups"][name]
        assert whole.value == pytest.approx(theirs["acc,none"])
        assert whole.documents == theirs["sample_len"]


@pytest.mark.parametrize("task", ["choice", "text", "answer"])
def test_nan_weights_fail_the_candidate_and_no_later_one(
    task: str, harness: Harness, model: Any
) -> None:
    good = score(harness, model, {task: [0, 1]})
    weight = model.model.layers[0].mlp.down_proj.weight
    kept = weight.detach().clone()
    weight.data.fill_(math.nan)
    with pytest.raises(CandidateError, match=f"task '{task}': the model's logits are not numbers"):
        score(harness, model, {task: [0, 1]})
    weight.data.copy_(kept)
    assert score(harness, model, {task: [0, 1]}) == good


@pytest.mark.parametrize("task", ["choice", "answer"])
def test_out_of_memory_names_the_batch_size(task: str, harness: Harness, model: Any) -> None:
    def exhaust(*_: Any) -> None:
        raise torch.OutOfMemoryError("no more")

    model.model.register_forward_pre_hook(exhaust)
    match = f"'{task}': out of memory with 64 tokens in a forward pass on cpu: no more"
    with pytest.raises(CandidateError, match=match):
        score(harness, model, {task: [0]})


def test_unknown_documents_and_tasks(harness: Harness, trained: Any) -> None:
    with pytest.raises(UserError, match="did you mean 'choice'"):
        score(harness, trained, {"choise": [0]})
    with pytest.raises(UserError, match=r"'choice': documents \[3\] to \[400\].*some of 0 to 36"):
        score(harness, trained, {"choice": [3, 400]})
    with pytest.raises(UserError, match="'choice': no documents were asked for"):
        score(harness, trained, {"choice": []})
    with pytest.raises(UserError, match="is a Linear; expected one of transformers"):
        score(harness, torch.nn.Linear(1, 1), {"choice": [0]})

"""Bits per byte of a text file against stock lm-eval on the same documents."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from evomerge.errors import CandidateError, UserError
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.bits_per_byte import METRIC, BitsPerByte, cut
from evomerge.scoring.scorecard import SMOOTH
from evomerge.scoring.scorer import Scorer, score_blocks
from evomerge.scoring.sharing import LanguageModels

TEXT = Path(__file__).parent.parent.parent / "LICENSE"  # 11 KB of English


@pytest.fixture(scope="module")
def scorer(tokenizer: Any) -> Scorer:
    return BitsPerByte({"licence": TEXT}, LanguageModels(tokenizer, budget=BatchBudget(1024)))


def test_documents_are_of_one_size_and_make_up_the_text(scorer: Scorer) -> None:
    documents = scorer.documents("licence")
    assert "".join(documents) == TEXT.read_text()
    sizes = [len(document.encode()) for document in documents]
    assert len(sizes) == round(sum(sizes) / 1024) > 10
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["a", "ä" * 1000, "x€" * 5000, "😀" * 3000, "ab\r\n" * 800])
def test_no_character_is_cut(text: str) -> None:
    documents = cut(text)
    assert "".join(documents) == text
    sizes = [len(document.encode()) for document in documents]
    assert max(sizes) - min(sizes) <= 4
    assert all(680 <= size <= 1540 for size in sizes) or len(sizes) == 1


def test_equals_stock_lm_eval(
    scorer: Scorer, trained: Any, tokenizer: Any, tmp_path: Path, add_task: Callable[..., Path]
) -> None:
    documents = scorer.documents("licence")
    folder = add_task(
        tmp_path / "tasks",
        "licence",
        [{"text": document} for document in documents],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="text",
        metric_list=[{"metric": "bits_per_byte"}],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stock = simple_evaluate(
            model=HFLM(
                pretrained=trained, tokenizer=tokenizer, softmax_dtype="float32", batch_size=8
            ),
            tasks=["licence"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
        )
    card = score_blocks(scorer, trained, [{"licence": range(len(documents))}])
    metric = card.metric("licence", METRIC)
    assert metric.value == pytest.approx(stock["results"]["licence"][METRIC], rel=1e-5)
    assert not metric.higher_is_better
    assert metric.documents == len(documents)
    values = card.per_document["licence"].values[METRIC]
    assert metric.value == pytest.approx(sum(values) / len(values), rel=1e-9)
    for sample in stock["samples"]["licence"]:
        number = sample["doc_id"]
        bits = -float(sample["resps"][0][0]) / math.log(2)
        size = len(documents[number].encode())
        assert values[number] == pytest.approx(bits / size, rel=1e-5)
    assert len(set(values)) == len(values)


def test_smooth_is_the_mean_over_tokens(scorer: Scorer, trained: Any) -> None:
    scoring = scorer.start(trained)
    scoring.add({"licence": [3, 1]})
    found = scoring.add({"licence": [2]})["licence"]
    assert found.documents == (1, 2, 3)
    documents = scorer.documents("licence")
    for number, bits, smooth in zip(
        found.documents, found.values[METRIC], found.values[SMOOTH], strict=True
    ):
        size = len(documents[number])  # one token per character, and one that begins the text
        assert smooth * (size + 1) == pytest.approx(-bits * math.log(2) * size, rel=1e-9)
    card = scoring.scorecard()
    assert [m.name for m in card.metrics] == [METRIC, SMOOTH]
    assert card.seconds["model"] > 0
    assert scorer.smooth("licence") == SMOOTH
    alone = scorer.start(trained, {"metric"}).add({"licence": [1]})["licence"]
    assert list(alone.values) == [METRIC]
    with pytest.raises(UserError, match=r"'licence': documents \[2\] were scored before"):
        scoring.add({"licence": [2]})
    with pytest.raises(UserError, match="did you mean 'licence'"):
        scoring.add({"license": [2]})


def test_nan_weights_fail_the_candidate(scorer: Scorer, model: Any) -> None:
    good = score_blocks(scorer, model, [{"licence": [0]}])
    weight = model.model.layers[0].mlp.down_proj.weight
    kept = weight.detach().clone()
    weight.data.fill_(math.nan)
    with pytest.raises(CandidateError, match="task 'licence': the model's logits are not numbers"):
        score_blocks(scorer, model, [{"licence": [0]}])
    weight.data.copy_(kept)
    assert score_blocks(scorer, model, [{"licence": [0]}]) == good


def test_files_that_are_no_text(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    shared = LanguageModels(tokenizer, budget=BatchBudget(1024))
    for name, message in (
        ("empty.txt", "is empty; expected a text"),
        ("latin.txt", "cannot be read: .* expected a text file in UTF-8"),
        ("none.txt", "none.txt cannot be read"),
    ):
        with pytest.raises(UserError, match=f"task 'notes': .*{message}"):
            BitsPerByte({"notes": tmp_path / name}, shared)

"""Functions of the user's own: how they are found, called, and what is wrong with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.errors import CandidateError, UserError
from evomerge.scoring.own_function import (
    FunctionTask,
    OwnFunctions,
    load_function,
    read_documents,
    source_file,
)
from evomerge.scoring.scorer import Scorer, score_blocks

DOCUMENTS = ('{"prompt": "1+1="}', '{"prompt": "rev beta:"}', '"2+2="')
CODE = """\
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Length:
    value: int

def length(model, tokenizer, documents):
    return [Length(len(document)).value for document in documents]

def norm(model, tokenizer, documents):
    return [model.lm_head.weight.norm()] * len(documents)
"""


def scorer_of(tokenizer: Any, function: Callable[..., Any], **settings: Any) -> Scorer:
    task = FunctionTask(
        name="mine", metric="liking,none", function=function, documents=DOCUMENTS, **settings
    )
    return OwnFunctions([task], tokenizer)


def test_the_function_sees_the_model_and_its_values_are_the_metric(
    tokenizer: Any, model: Any
) -> None:
    asked: list[Any] = []

    def first_token(model: Any, tokenizer: Any, documents: list[Any]) -> list[Any]:
        asked.append(documents)
        texts = [d if isinstance(d, str) else d["prompt"] for d in documents]
        rows = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
        return [model(row).logits[0, -1].log_softmax(-1).max() for row in rows]

    scorer = scorer_of(tokenizer, first_token)
    assert scorer.tasks == ("mine",)
    assert scorer.documents("mine") == DOCUMENTS
    assert scorer.objective("mine") == "liking,none"
    assert scorer.smooth("mine") is None
    whole = score_blocks(scorer, model, [{"mine": range(3)}])
    assert asked == [[{"prompt": "1+1="}, {"prompt": "rev beta:"}, "2+2="]]
    values = whole.per_document["mine"].values["liking,none"]
    (metric,) = whole.metrics
    assert metric.value == pytest.approx(sum(values) / 3)
    assert metric.higher_is_better
    assert metric.standard_error is not None
    assert len(set(values)) == 3
    assert score_blocks(scorer, model, [{"mine": [2]}, {"mine": [1, 0]}]) == whole
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    assert score_blocks(scorer, model, [{"mine": range(3)}]) != whole
    assert score_blocks(scorer, model, [{"mine": [0]}], kinds={"smooth"}).metrics == ()
    assert len(asked) == 4  # not called where its metric is not wanted


def test_less_may_be_better_and_chance_comes_out_the_same(tokenizer: Any, trained: Any) -> None:
    def chance(model: Any, tokenizer: Any, documents: list[Any]) -> Any:
        return torch.rand(len(documents))

    before = torch.random.get_rng_state()
    scorer = scorer_of(tokenizer, chance, higher_is_better=False)
    cards = [score_blocks(scorer, trained, [{"mine": range(3)}]) for _ in range(2)]
    assert cards[0] == cards[1]
    assert not cards[0].metrics[0].higher_is_better
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m, t, d: [0.5], "returned 1 values for 3 documents; expected one for each"),
        (lambda m, t, d: [0.5, float("nan"), 1], "returned nan for document 1; expected a finite"),
        (lambda m, t, d: [0.5, 1, float("inf")], "returned inf for document 2"),
        (lambda m, t, d: d[9], "raised IndexError: list index out of range"),
        (lambda m, t, d: ["good"] * 3, "returned str 'good' for a document; expected a number"),
        (lambda m, t, d: None, "returned NoneType None; expected a list of numbers"),
    ],
)
def test_a_bad_function_fails_the_candidate(
    tokenizer: Any, trained: Any, function: Callable[..., Any], message: str
) -> None:
    with pytest.raises(CandidateError, match=f"task 'mine': its function {message}"):
        score_blocks(scorer_of(tokenizer, function), trained, [{"mine": range(3)}])


def test_unknown_and_repeated_documents(tokenizer: Any, trained: Any) -> None:
    scoring = scorer_of(tokenizer, lambda m, t, d: [1.0] * len(d)).start(trained)
    scoring.add({"mine": [0]})
    with pytest.raises(UserError, match=r"'mine': documents \[0\] were scored before"):
        scoring.add({"mine": [0, 1]})
    with pytest.raises(UserError, match=r"'mine': documents \[1\] to \[3\] were asked for"):
        scoring.add({"mine": [1, 3]})
    with pytest.raises(UserError, match="did you mean 'mine'"):
        scoring.add({"mien": [0]})


def test_modules_are_found_beside_the_configuration_and_then_among_packages(
    tmp_path: Path,
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "own" / "json.py").write_text(CODE.replace("len(document)", "7"))
    assert load_function("mine:length", tmp_path)(None, None, ["abc"]) == [3]
    assert load_function("own.json:length", tmp_path)(None, None, ["abc"]) == [7]
    # A file beside the configuration comes before an installed module, and does not hide it.
    (tmp_path / "colorsys.py").write_text("def loads(model, tokenizer, documents):\n    return [1]")
    assert load_function("colorsys:loads", tmp_path)(None, None, []) == [1]
    assert load_function("json:loads", tmp_path)('{"a": 1}') == {"a": 1}  # type: ignore[call-arg]
    assert source_file("mine:length", tmp_path) == tmp_path / "mine.py"
    assert source_file("json:loads", tmp_path).parts[-2:] == ("json", "__init__.py")


def test_what_is_wrong_with_a_module_is_said(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    for path, message in (
        ("mine:lenght", r"mine.py has no function 'lenght'; did you mean 'length'\?"),
        ("my_scores:score", "neither a file .*my_scores.py nor an installed module 'my_scores'"),
        ("none.of.these:score", "neither a file .*these.py nor an installed module"),
        ("broken:score", "broken.py cannot be imported: ModuleNotFoundError: No module named"),
    ):
        with pytest.raises(UserError, match=f"scorer {path}: .*{message}"):
            load_function(path, tmp_path)


def test_documents_are_lines_of_json(tmp_path: Path) -> None:
    file = tmp_path / "documents.jsonl"
    file.write_text('{"a": 1}\n\n"\u2028"\n')
    assert read_documents("mine", file) == ('{"a": 1}', '"\u2028"')
    for text, message in (
        ("\n", "is empty; expected a JSON document per line"),
        ('{"a": 1}\n{"a"', "document 2 is not JSON"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=f"task 'mine': .*{message}"):
            read_documents("mine", file)
    with pytest.raises(UserError, match=r"none\.jsonl cannot be read"):
        read_documents("mine", tmp_path / "none.jsonl")

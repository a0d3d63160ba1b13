"""Generation by vLLM, with a stand-in for its engine: transformers behind the same calls."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from evomerge.errors import CandidateError, UserError
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.harness import Harness
from evomerge.scoring.scorer import score_blocks
from evomerge.scoring.tasks import TaskRequest
from evomerge.scoring.vllm_generation import VllmGenerator, weights_on_disk
from tests.families import make_model


class Engine:
    """What the generator uses of vllm.LLM; `calls` names what was done."""

    made: list["Engine"] = []  # noqa: RUF012
    resets = True

    def __init__(self, model: str, **settings: Any) -> None:
        assert settings == {
            "load_format": "dummy",
            "dtype": "float32",
            "generation_config": "vllm",
        }
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).eval()
        self.calls: list[str] = []
        Engine.made.append(self)

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights"
        self.weights = dict(kwargs["weights_iterator"])
        missing, unknown = self.model.load_state_dict(self.weights, strict=False)
        assert not unknown
        assert set(missing) <= set(self.model.all_tied_weights_keys)
        self.calls.append(method)

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset_prefix_cache")
        return self.resets

    @torch.no_grad()
    def generate(self, prompts: list[Any], settings: Any, use_tqdm: bool) -> list[Any]:
        assert settings.temperature == 0.0
        assert "" not in settings.stop
        self.calls.append("generate")
        answers = [self._answer(prompt["prompt_token_ids"], settings) for prompt in prompts]
        return [SimpleNamespace(outputs=[answer]) for answer in answers]

    def _answer(self, prompt: list[int], settings: Any) -> SimpleNamespace:
        answer: list[int] = []
        while len(answer) < settings.max_tokens:
            logits = self.model(torch.tensor([prompt + answer])).logits[0, -1]
            answer.append(int(logits.argmax()))
            text = self.tokenizer.decode(answer, skip_special_tokens=settings.skip_special_tokens)
            if answer[-1] in settings.stop_token_ids or any(s in text for s in settings.stop):
                return SimpleNamespace(token_ids=tuple(answer), finish_reason="stop")
        return SimpleNamespace(token_ids=tuple(answer), finish_reason="length")


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("vllm")
    module.__version__ = "0.33.0"
    module.LLM = Engine
    module.SamplingParams = SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setattr(Engine, "made", [])
    return module


def test_answers_are_those_of_the_live_models_weights(
    vllm: Any, folder: Path, tokenizer: Any, model: Any
) -> None:
    requests = [TaskRequest(name=name, folder=folder) for name in ("answer", "counted", "cloze")]
    own = Harness(requests, tokenizer, budget=BatchBudget(256))
    other = Harness(
        requests, tokenizer, budget=BatchBudget(256), generator=VllmGenerator(tokenizer)
    )
    blocks = [{"answer": range(12), "cloze": range(4)}, {"counted": range(6)}]
    first = score_blocks(other, model, blocks)
    assert first == score_blocks(own, model, blocks)
    (engine,) = Engine.made
    anew = ["reload_weights", "reset_prefix_cache"]
    assert engine.calls == [*anew, "generate", "generate"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    second = score_blocks(other, model, blocks)
    assert second == score_blocks(own, model, blocks)
    assert second != first
    assert Engine.made == [engine]
    assert engine.calls == [*anew, "generate", "generate"] * 2
    live = model.state_dict()
    assert set(live) - set(engine.weights) == {"lm_head.weight"}  # tied
    assert all(torch.equal(live[name], tensor) for name, tensor in engine.weights.items())


def test_old_keys_and_values_must_go(
    vllm: Any, tokenizer: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "resets", False)
    generator = VllmGenerator(tokenizer)
    for _ in range(2):
        with pytest.raises(CandidateError, match="could not reset its prefix cache"):
            generator.generate(model, [[1, 2]], max_new_tokens=1, stop=(), end_tokens=set())


@pytest.mark.parametrize("family", ["llama_tied", "qwen2", "mixtral", "qwen3_moe", "gpt2"])
def test_weights_have_the_names_and_values_of_a_checkpoint(family: str, tmp_path: Path) -> None:
    model = make_model(family, seed=0)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    weights = dict(weights_on_disk(model))
    assert set(weights) == set(saved)
    assert all(torch.equal(weights[name], saved[name]) for name in saved)


def test_absence_and_age_give_the_line_that_mends_them(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"needs the package vllm.* pip install 'vllm>=0.33'"):
        VllmGenerator(tokenizer)
    old: Any = ModuleType("vllm")
    old.__version__ = "0.9.2"
    monkeypatch.setitem(sys.modules, "vllm", old)
    with pytest.raises(UserError, match=r"vllm 0.9.2 is installed; expected 0.33 or newer"):
        VllmGenerator(tokenizer)

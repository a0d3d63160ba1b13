"""A recipe and opened models -> one job per tensor; every mistake in a recipe is raised here."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from evomerge.architectures import check_scalable, place, writes_to_residual
from evomerge.errors import CandidateError, UserError
from evomerge.merging.feed import feed
from evomerge.merging.job import Job
from evomerge.merging.layout import Slot
from evomerge.merging.models import Models
from evomerge.methods import look_up
from evomerge.methods.apply import Pass, chunked, merge_tensor
from evomerge.methods.method import Method, Value
from evomerge.methods.parameters import check_parameters
from evomerge.methods.parameters import number as number_of
from evomerge.methods.passthrough import PASSTHROUGH
from evomerge.recipe import MERGED, Piece, Recipe, Rule
from evomerge.seeding import mask_key

_READ_BEFORE_FORGETTING = 2**28  # bytes of memory-mapped files


def plan_merge(recipe: Recipe, models: Models) -> tuple[Job, ...]:
    """One job per tensor of the result, in the order in which they are written; reads no weights.

    UserError for an unknown method or parameter, a value out of bounds, a source that the models
    lack, a tensor that no rule or more than one covers, a rule that covers nothing, and a stack
    that the base's architecture does not allow.
    """
    jobs = _plan_rules(recipe, models)
    if recipe.stack is not None:
        return _plan_stack(recipe, jobs, models)
    for name in models.layout.slots:
        if name not in jobs:
            raise _covered_by(name, "no rule")
    return tuple(jobs.values())


def _plan_rules(recipe: Recipe, models: Models) -> dict[str, Job]:
    """By name, the jobs of all slots that a rule covers, each in its own place."""
    resolved = []
    for number, rule in enumerate(recipe.rules):
        try:
            resolved.append(_resolve(rule, models))
            _check_needs(recipe, resolved[-1][0])
        except UserError as error:
            raise UserError(f"rules.{number} ({rule.label()}): {error}") from None
    used: set[int] = set()
    jobs = {}
    for slot in models.layout.slots.values():
        where = place(slot.name)
        covering = [
            n
            for n, rule in enumerate(recipe.rules)
            if rule.covers(where.layer, where.part, slot.name)
        ]
        if len(covering) > 1:
            raise _covered_by(slot.name, ", ".join(recipe.rules[n].label() for n in covering))
        used |= set(covering)
        for number in covering:
            rule, (method, parameters) = recipe.rules[number], resolved[number]
            scaled = _with_lines(rule, parameters, slot.name, models.stacks.depth)
            jobs[slot.name] = _job(slot, recipe, rule, method, scaled)
    if idle := sorted(set(range(len(recipe.rules))) - used):
        rule = recipe.rules[idle[0]]
        raise UserError(
            f"rules.{idle[0]} ({rule.label()}) covers no tensor of this model; the model's layers "
            "and parts are listed by `evomerge check`"
        )
    return jobs


def _plan_stack(recipe: Recipe, merged: Mapping[str, Job], models: Models) -> tuple[Job, ...]:
    """Jobs of a stacked model; those of `merged` for its ends and for the layers it takes there."""
    stack = recipe.stack or ()
    pieces: list[Piece | None] = [piece for piece in stack for _ in piece.layers]
    for number, part in enumerate(stack):
        if part.source != MERGED and part.source not in models.checkpoints:
            raise UserError(f"stack.{number}: source {part.source!r} is not among the models")
    layout, origins = models.stacks.layout(recipe.layers_of_stack() or ())
    if any(part.scale != 1.0 for part in stack):
        check_scalable([name for name in models.layout.slots if place(name).layer == 0])
    jobs = []
    for slot in layout.slots.values():
        layer, origin = place(slot.name).layer, origins[slot.name]
        piece = None if layer is None else pieces[layer]
        if piece is None or piece.source == MERGED:
            if origin not in merged:
                raise _covered_by(origin, "no rule")
            job = replace(merged[origin], slot=slot)
        else:
            job = _passed_through(slot, origin, piece.source)
        if piece is not None and writes_to_residual(slot.name):
            job = replace(job, scale=piece.scale)
        jobs.append(job)
    return tuple(jobs)


def _covered_by(name: str, rules: str) -> UserError:
    where = place(name)
    layer = "outside the layers" if where.layer is None else f"layer {where.layer}"
    return UserError(
        f"tensor {name} ({layer}, {where.part}) is covered by {rules}; expected "
        "exactly one rule: change layers or parts of the recipe's rules"
    )


def merge_job(
    job: Job,
    models: Models,
    operands: tuple[torch.Tensor, ...],
    *,
    out: torch.Tensor | None = None,
    run: Pass = chunked,
) -> torch.Tensor:
    """Makes one tensor; the one function that makes weights.

    operands: base and sources, on one device, as `feed` brings them. `out`, a view into a live
    model, is filled and returned; otherwise a new tensor of the slot's type. NaN and infinity are
    let through: see `check_finite`.
    """
    shape = operands[0].shape
    if shape != job.slot.shape and (out is None or out.shape != shape):  # rows of padding follow
        if out is None:
            out = torch.empty(job.slot.shape, dtype=job.slot.dtype, device=operands[0].device)
        out[shape[0] :].copy_(models.padding(job.origin))
        merge_job(job, models, operands, out=out[: shape[0]], run=run)
        return out
    if job.method is None:
        return operands[0] if out is None else out.copy_(operands[0])
    whole = job.scale == 1.0  # otherwise scaled in float32, and cast once
    merged = merge_tensor(
        job.method,
        operands[0],
        operands[1:],
        job.parameters,
        models.statistics(job.origin, job.sources, operands, job.keys),
        out=out if whole else None,
        out_dtype=job.slot.dtype if whole else torch.float32,
        run=run,
    )
    if whole:
        return merged
    scaled = merged.mul_(job.scale)
    return scaled.to(job.slot.dtype) if out is None else out.copy_(scaled)


def merged_tensors(
    recipe: Recipe, models: Models, device: torch.device | None = None, run: Pass = chunked
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of the whole merged model, one at a time, for a writer.

    device: where to compute (default: the CPU). CandidateError at a tensor that is not finite.
    """
    jobs = plan_merge(recipe, models)
    places = dict.fromkeys((job.slot.name for job in jobs), device or torch.device("cpu"))
    read = 0
    for job, operands in feed(jobs, models, places):
        merged = merge_job(job, models, operands, run=run)
        check_finite({job.slot.name: merged.isfinite().all()})
        yield job.slot.name, merged
        read += sum(operand.nbytes for operand in operands)
        if read > _READ_BEFORE_FORGETTING:
            models.forget()
            read = 0


def check_finite(flags: Mapping[str, torch.Tensor]) -> None:
    """CandidateError that names the tensors whose flag (0-d bool) is false; one device sync."""
    if not flags or bool(torch.stack(list(flags.values())).all()):
        return
    bad = [name for name, flag in flags.items() if not flag]
    more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
    raise CandidateError(f"tensor {bad[0]}{more} has NaN or infinite entries after the merge")


def _resolve(rule: Rule, models: Models) -> tuple[Method, dict[str, Value]]:
    method = look_up(rule.method)
    for source in rule.sources:
        if source not in models.checkpoints:
            raise UserError(f"source {source!r} is not among the models")
    if len(set(rule.sources)) != len(rule.sources):
        raise UserError(f"sources: {list(rule.sources)}: one stands twice; add up its weights")
    given: dict[str, object] = {}
    for name, value in rule.parameters.items():
        if isinstance(value, dict):
            if set(value) != set(rule.sources):
                raise UserError(
                    f"{name}: has values for {sorted(value)}; expected one for each of "
                    f"{list(rule.sources)}"
                )
            given[name] = tuple(value[source] for source in rule.sources)
        else:
            given[name] = value
    if rule.lines is not None and "lambda" not in {row.name for row in method.parameters}:
        raise UserError(
            f"lines: scales a method's lambda by depth, and {method.name} has none; expected a "
            "method of task vectors"
        )
    return method, check_parameters(method, given, len(rule.sources))


def _check_needs(recipe: Recipe, method: Method) -> None:
    if "activations" in method.needs and recipe.calibration is None:
        raise UserError(
            f"{method.name} needs a text on which the sources are run; expected `calibration: "
            "{file: text.txt}` in the recipe"
        )


def _with_lines(
    rule: Rule, parameters: dict[str, Value], slot: str, layers: int
) -> dict[str, Value]:
    """The parameters with `lambda` scaled by depth, where the rule asks for LiNeS."""
    if rule.lines is None:
        return parameters
    scale = lines_scale(rule, slot, layers)
    return {**parameters, "lambda": number_of(parameters, "lambda") * scale}


def lines_scale(rule: Rule, slot: str, layers: int) -> float:
    """What a rule's LiNeS multiplies `lambda` of a tensor by, in a model of so many layers."""
    if rule.lines is None:
        return 1.0
    where = place(slot)
    after = where.part in ("final_norm", "head")
    depth = float(after) if where.layer is None else where.layer / max(1, layers - 1)
    return rule.lines.alpha + rule.lines.beta * depth


def _job(
    slot: Slot, recipe: Recipe, rule: Rule, method: Method, parameters: Mapping[str, Value]
) -> Job:
    keys = tuple(mask_key(recipe.seed, slot.name, source) for source in rule.sources)
    return Job(
        slot=slot,
        origin=slot.name,
        method=method if slot.dtype.is_floating_point else None,
        sources=rule.sources,
        parameters=parameters,
        keys=keys if "mask" in method.needs else (),
    )


def _passed_through(slot: Slot, origin: str, source: str) -> Job:
    return Job(
        slot=slot,
        origin=origin,
        method=PASSTHROUGH if slot.dtype.is_floating_point else None,
        sources=(source,),
        parameters=check_parameters(PASSTHROUGH, {}, 1),
        keys=(),
    )

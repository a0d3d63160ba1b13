"""Brings the operands of jobs to where they are merged, the next ones while the last are used."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from evomerge.merging.job import Job
from evomerge.merging.models import Models

Fetched = tuple[tuple[torch.Tensor, ...], torch.cuda.Event | None]


def feed(
    jobs: Sequence[Job], models: Models, devices: Mapping[str, torch.device]
) -> Iterator[tuple[Job, tuple[torch.Tensor, ...]]]:
    """Each job with its operands (base first) on its device, by slot name.

    On a GPU, copies from pinned memory run on a stream of their own, one job ahead, so that they
    overlap the arithmetic. Tensors that are there already are passed on as they are.
    """
    streams: dict[torch.device, torch.cuda.Stream] = {}
    ahead: Fetched | None = None
    for number, job in enumerate(jobs):
        operands, ready = ahead or _fetch(job, models, devices, streams)
        following = jobs[number + 1 : number + 2]
        ahead = _fetch(following[0], models, devices, streams) if following else None
        if ready is not None:
            current = torch.cuda.current_stream(devices[job.slot.name])
            current.wait_event(ready)
            for tensor in operands:
                tensor.record_stream(current)
        yield job, operands


def _fetch(
    job: Job,
    models: Models,
    devices: Mapping[str, torch.device],
    streams: dict[torch.device, torch.cuda.Stream],
) -> Fetched:
    device = devices[job.slot.name]
    operands = models.operands(job.origin, job.sources)
    if all(tensor.device == device for tensor in operands):
        return operands, None
    if device.type != "cuda":
        return tuple(tensor.to(device) for tensor in operands), None
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream = streams[device]
    with torch.cuda.stream(stream):
        moved = tuple(tensor.to(device, non_blocking=True) for tensor in operands)
        return moved, stream.record_event()

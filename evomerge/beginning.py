"""What the leader of a run does at a start, before the first trial."""

import logging
from typing import Any

from evomerge.checking import sampler_choice
from evomerge.environment import environment
from evomerge.files import write_text
from evomerge.going_on import Starts, plain_baselines, take_up_starts
from evomerge.identity import asked
from evomerge.merging.norms import task_vector_norms
from evomerge.notify import KEPT_NOTIFY
from evomerge.scorers import published
from evomerge.searching.even_norms import enqueue_starts
from evomerge.searching.kept_questions import keep_questions
from evomerge.searching.patience import patiently
from evomerge.searching.record import WORKER
from evomerge.searching.recovery import drop_claims, take_up_interrupted
from evomerge.searching.space import SearchSpace
from evomerge.searching.storage import without_password
from evomerge.searching.study import (
    CONFIG,
    HISTORY,
    PUBLISHED,
    TASKS,
    enqueue_baselines,
    finished,
    note,
    published_sentence,
    write_goal,
)
from evomerge.session import Session
from evomerge.typed_yaml import with_value

log = logging.getLogger(__name__)


def begin(session: Session, starts: Starts, workers: int) -> None:
    """Takes up what a kill left, puts the baselines into the queue, and records this start.

    workers: processes on this machine that are to take part.
    """
    bench, study, folder = session.bench, session.study, session.folder
    text = bench.loaded.file.read_text(encoding="utf-8")
    url = bench.loaded.config.storage
    if url is not None and (shown := without_password(url)) != url:
        text = with_value(text, "storage", f'"{shown}"')
    if bench.loaded.config.notify is not None:
        # Its address or command may hold a secret; and who reads a record must run none from it.
        text = with_value(text, "notify", f'"{KEPT_NOTIFY}"')
    if not folder.config.exists():
        patiently("writing config.yaml", lambda: write_text(folder.config, text))
    if CONFIG not in study.user_attrs:
        place = str(bench.loaded.folder.resolve())
        study.set_user_attr(CONFIG, {"text": text, "folder": place, "name": bench.loaded.file.name})

    def alive(trial: Any) -> bool:
        return session.presence.alive(trial.user_attrs.get(WORKER, {}).get("worker", ""))

    if back := take_up_interrupted(study, alive, all_died=True):
        log.info("%d interrupted trial(s) are taken up again", back)
    drop_claims(study)
    plain = plain_baselines(bench) | take_up_starts(study, starts)
    enqueue_baselines(study, bench.space, plain)
    if isinstance(bench.space, SearchSpace):
        names = tuple(bench.template.sources)
        enqueue_starts(
            study,
            bench.space,
            lambda cells: task_vector_norms(bench.models, cells, names, bench.device),
        )
    study.set_user_attr(TASKS, asked(bench))
    write_goal(study, bench.goal)
    public = published(bench.scorer)
    if public and PUBLISHED not in study.user_attrs:
        log.info("%s", published_sentence(public))
    study.set_user_attr(PUBLISHED, public)
    _record(session, workers)
    if without := keep_questions(folder, bench.scorer, bench.splits):
        note(study, "without questions", without)


def _record(session: Session, workers: int) -> None:
    """This start, in the study's history and in the log."""
    bench, study, budget = session.bench, session.study, session.budget
    done = len(finished(study))
    sampler, reason = sampler_choice(bench, budget)
    off = bench.guiding()
    constraints = [constraint.sentence() for constraint in bench.goal.constraints]
    words = {
        "memory": bench.memory.sentence(),
        "objective": f"{bench.goal.kind}: {bench.goal.reason}",
        "normalise": f"{bench.goal.normalise}: {bench.goal.normalise_reason}",
        "early stopping": bench.stopping(),
        "guidance": "along the gradient" if off is None else f"off: {off}",
    }
    start = {
        **environment(),
        "sampler": sampler,
        "reason": reason,
        "budget": budget.facts(),
        "trials before": done,
        "workers": workers,
        "merging": bench.pass_reason,
        "constraints": constraints,
        **words,
    }
    study.set_user_attr(HISTORY, [*study.user_attrs.get(HISTORY, []), start])
    for name, text in words.items():
        if name != "memory":  # every worker says its own
            log.info("%s: %s", name, text)
    for text in constraints:
        log.info("constraint: %s", text)
    count = len(bench.space.distributions())
    log.info("%d parameters, sampler %s: %s", count, sampler, reason)
    if done:
        log.info("goes on after %d finished trials", done)

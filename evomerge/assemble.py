"""From a configuration to live objects: the only file that knows every room."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from evomerge.checkpoints.hashes import HashCache
from evomerge.checkpoints.tokenizer import load_tokenizer
from evomerge.checkpoints.unchanged import Unchanged
from evomerge.config import LoadedConfig
from evomerge.devices import choose_device, free_bytes
from evomerge.evaluator import Evaluator
from evomerge.merging.calibration import calibrate
from evomerge.merging.kept_statistics import KeptStatistics
from evomerge.merging.models import Models, open_models
from evomerge.merging.placement import MemoryPlan, spread_memory
from evomerge.merging.workspace import Workspace
from evomerge.methods import METHODS
from evomerge.methods.apply import Pass
from evomerge.methods.compiled import choose_pass
from evomerge.recipe import BASE, Recipe
from evomerge.scorers import scorer_of, tasks_of
from evomerge.scoring.batch_budget import BatchBudget
from evomerge.scoring.documents import Split, split_documents, stratified_blocks
from evomerge.scoring.scorer import Documents, Scorer
from evomerge.searching.objective import Goal, Objective, Target, choose_goal
from evomerge.searching.racing import EarlyStopping, Racing
from evomerge.searching.references import choose_normalisation, make_constraints
from evomerge.searching.run_folder import Side
from evomerge.searching.space import Space
from evomerge.searching.stacks import StackSpace
from evomerge.spaces import space_of
from evomerge.template import refuse_not_finite, template_of, with_hashes


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """All that a search needs beside its study; the live model is made by `evaluator`."""

    loaded: LoadedConfig
    template: Recipe
    """Models, seed and dtype of every recipe; no rules."""
    models: Models
    scorer: Scorer
    budget: BatchBudget
    """Of the scorer's forward passes."""
    splits: Mapping[str, Split]
    goal: Goal
    early_stopping: EarlyStopping | None
    """None: every trial is scored in full."""
    space: Space
    memory: MemoryPlan
    device: torch.device
    run: Pass
    """What merges a tensor: the compiled pass, or the plain one."""
    pass_reason: str
    """Which of the two, and why."""
    unchanged: Unchanged
    """Looks whether the models' files are those that were hashed."""

    def documents(self, side: Side) -> dict[str, tuple[int, ...]]:
        """Task -> numbers of the documents on one side of the split."""
        return {task: getattr(split, side) for task, split in self.splits.items()}

    def blocks(self, side: Side) -> tuple[Documents, ...]:
        """The documents of a side in the parts in which every candidate is scored on them: with
        early stopping, those of the search in several."""
        documents = self.documents(side)
        if side == "holdout" or self.early_stopping is None:
            return (documents,)
        count = self.early_stopping.count(sum(map(len, documents.values())))
        return stratified_blocks(documents, count)

    def devices(self) -> tuple[torch.device, ...]:
        """Where candidates are made and scored."""
        if self.loaded.config.device == "spread":
            return tuple(torch.device("cuda", n) for n in range(torch.cuda.device_count()))
        return (self.device,)

    def racing(self) -> Racing | None:
        """What all races of a run share; None where every trial is scored in full."""
        blocks = self.blocks("search")
        if self.early_stopping is None or len(blocks) == 1:
            return None
        return Racing(self.early_stopping, self.goal.climbed, blocks)

    def guiding(self) -> str | None:
        """Why there are no steps along the gradient; None: there are."""
        if self.loaded.config.guide == "none":
            return "as configured"
        if self.goal.kind == "metric":
            return f"the objective is the tasks' own metrics ({self.goal.reason})"
        if self.goal.several:
            return "of several objectives no single slope leads upwards"
        if isinstance(self.space, StackSpace):
            return "which layer stands where is no number"
        if self.loaded.config.device == "spread":
            return "the model is spread over devices"
        return None

    def stopping(self) -> str:
        """Whether and when trials are given up, in words."""
        if self.goal.several:
            return "off: a trial that is behind in one of several objectives may lead in another"
        if self.early_stopping is None:
            return "off, as configured"
        documents = sum(map(len, self.documents("search").values()))
        return self.early_stopping.sentence(documents)


def prepare(loaded: LoadedConfig, hashes: HashCache, *, workers: int = 1) -> Bench:
    """Opens models and tasks and cuts the space; loads no weights.

    workers: processes of the search on this machine, which share its memory. UserError for
    everything that can be wrong with models and tasks.
    """
    config = loaded.config
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    template = template_of(loaded)
    models = open_models(
        template, trust_remote_code=config.trust_remote_code, relative_to=loaded.folder
    )
    found = models.vocabularies
    tokenizer = load_tokenizer(models.base.folder) if found is None else found.tokenizer
    budget = BatchBudget(config.batch_tokens)
    scorer = scorer_of(loaded, tokenizer, budget)
    splits = {
        name: split_documents(
            task=name,
            texts=scorer.documents(name),
            seed=config.documents.seed,
            holdout_share=config.documents.holdout,
            limit=task.limit,
        )
        for name, task in tasks_of(loaded).items()
    }
    targets = {
        name: Target(
            metric=scorer.objective(name),
            weight=task.weight if _counts(name, config.objectives) else 0.0,
        )
        for name, task in tasks_of(loaded).items()
    }
    template = with_hashes(template, models, hashes)
    unchanged = Unchanged(models.checkpoints, _known_hashes(template))
    refuse_not_finite(template, models, hashes)
    space = space_of(loaded, template, models)
    slots = models.stacks.deepest(space.depth[1] if isinstance(space, StackSpace) else None)
    elements = sum(math.prod(slot.shape) for slot in slots)
    run, reason = choose_pass(device, elements, config.compile)
    return Bench(
        loaded=loaded,
        template=template,
        models=models,
        scorer=scorer,
        budget=budget,
        splits=splits,
        goal=_goal(loaded, Objective(targets=targets), scorer),
        early_stopping=None
        if config.early_stopping is None or config.objectives
        else EarlyStopping(**dataclasses.asdict(config.early_stopping)),
        space=space,
        memory=MemoryPlan(
            model_bytes=sum(math.prod(slot.shape) * slot.dtype.itemsize for slot in slots),
            operand_bytes=models.bytes(),
            free_bytes=free_bytes(device, spread=config.device == "spread")
            // (workers if device.type == "cpu" else 1),
            host_free_bytes=free_bytes(torch.device("cpu")) // workers,
            device=str(device),
            spread=config.device == "spread",
            wanted=config.placement,
        ),
        device=device,
        run=run,
        pass_reason=reason,
        unchanged=unchanged,
    )


def _goal(loaded: LoadedConfig, points: Objective, scorer: Scorer) -> Goal:
    config = loaded.config
    goal = choose_goal(config.objective, points, scorer.smooth, config.finalist_count())
    goal = dataclasses.replace(goal, parts=config.objectives)
    objectives = goal.split(points).values() if goal.several else [points]
    normalise, reason = choose_normalisation(config.normalise, objectives)
    return dataclasses.replace(
        goal,
        normalise=normalise,
        normalise_reason=reason,
        constraints=make_constraints(
            {name: limit.given() for name, limit in config.constraints.items()}, points
        ),
    )


def _counts(task: str, objectives: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a task is part of an objective: all are, where there is one."""
    return not objectives or any(task in tasks for tasks in objectives.values())


def evaluator(bench: Bench, statistics: Path | None = None) -> Evaluator:
    """Loads the live model and returns what makes and scores candidates in it.

    statistics: the folder that keeps what is computed of tensors once per run.
    """
    config = bench.loaded.config
    bench.unchanged.check(read=True)
    hashes = _known_hashes(bench.template)
    spread = config.device == "spread"
    near = bench.device if bench.memory.placement == "device" and not spread else None
    bench.models.kept = KeptStatistics(statistics, hashes, near)
    device_map = "auto" if spread else None
    max_memory = spread_memory() if spread else None

    def prepare_activations(recipe: Recipe, sources: tuple[str, ...]) -> None:
        calibrate(
            recipe,
            bench.models,
            sources,
            device=bench.device,
            folder=statistics,
            device_map=device_map,
            max_memory=max_memory,
            trust_remote_code=config.trust_remote_code,
        )

    # Before the live model, so that a search holds one of them at a time.
    if statistics and any("activations" in METHODS[m].needs for m in bench.space.methods):
        prepare_activations(bench.template, tuple(bench.template.sources))
    workspace = Workspace(
        bench.models,
        dtype=getattr(torch, bench.template.dtype),
        device=bench.device,
        device_map=device_map,
        max_memory=max_memory,
        trust_remote_code=config.trust_remote_code,
        run=bench.run,
    )
    bench.models.hold(bench.memory.placement, workspace.devices)
    bench.unchanged.check(read=True)
    bench.budget.settle(workspace.model)
    return Evaluator(
        workspace=workspace,
        scorer=bench.scorer,
        device=bench.device,
        blocks=bench.blocks,
        calibrate=prepare_activations,
        gradient_tokens=bench.budget.tokens,
        unchanged=partial(bench.unchanged.check, read=bench.memory.placement == "files"),
    )


def _known_hashes(template: Recipe) -> dict[str, str]:
    """Of the weights of base and sources, by name."""
    return {name: template.model(name).sha256 or name for name in (BASE, *template.sources)}

"""Where nothing is better than anything else, a search says so."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge import search
from evomerge.searching.intervals import resample

Small = Callable[..., Path]
MODELS = Path(__file__).parents[2] / "configs" / "quickstart" / "models"


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources, each the quickstart's base plus noise of a tenth of its size."""
    folder = tmp_path_factory.mktemp("copies")
    for seed, name in enumerate(("dial", "past")):
        shutil.copytree(MODELS / "base", folder / name)
        weights = load_file(folder / name / "model.safetensors")
        generator = torch.Generator().manual_seed(seed)
        for tensor in weights.values():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor += (0.1 * tensor.float().square().mean().sqrt() * noise).to(tensor.dtype)
        save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_searches_among_copies_show_no_difference(small: Small, copies: Path) -> None:
    conclusions = []
    for seed in range(3):
        path = small(
            f"seed: {seed}\ndocuments: {{seed: {seed}}}\nearly_stopping: false\n",
            trials=22,
            name=f"run{seed}",
        )
        text = path.read_text()
        for name in ("dial", "past"):
            text = text.replace(f"{name}: {MODELS}/{name}", f"{name}: {copies}/{name}")
        assert str(copies) in text
        path.write_text(text)
        verdict = search(path).verdict
        assert verdict is not None
        conclusions.append(verdict.conclusion)
    assert conclusions == ["no difference shown"] * 3


def test_choosing_the_luckiest_finalist_and_rival_seldom_shows_a_difference() -> None:
    """Six equal baselines, three equal finalists, all of them alike; whoever looks best on the
    holdout itself is taken as the winner, as a reader of the table might."""
    generator = np.random.default_rng(0)
    found: Counter[str] = Counter()
    uncorrected = 0
    for seed in range(300):
        chance = generator.random(120)[:, None]  # documents are easy or hard for all
        right = (generator.random((120, 9)) < chance).astype(float)
        pairs = (right[:, :3, None] - right[:, None, 3:]).reshape(120, 18)
        drawn = resample({"task": pairs}, {"task": 1.0}, seed, resamples=400)
        top = max(drawn.over_best(6), key=lambda gain: gain.value)
        found["better" if top.shown else "worse" if top.loss_shown else "neither"] += 1
        uncorrected += any(gain.loss_shown or gain.shown for gain in drawn.each())
    assert found["better"] + found["worse"] <= 0.05 * 300
    assert uncorrected > 0.15 * 300  # which is why the intervals are corrected

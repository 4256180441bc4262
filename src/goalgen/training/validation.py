"""What a run is judged by while it trains: the bound on held-out goals, which picks its best weights, and pictures."""

from __future__ import annotations

from pathlib import Path

import torch

from goalgen import rng
from goalgen.data import ImageSet, from_unit, to_bytes, to_unit
from goalgen.family import Family
from goalgen.pictures import columns_for, film_strip, save_gif, save_png, tile
from goalgen.rollout import draw_noise, sample_rollout
from goalgen.starts import Start
from goalgen.task import Task

BATCH = 64
COUNT, ROWS, MOVING = 64, 8, 16
"""Samples in the picture, in the film strip, and in the GIF."""


@torch.no_grad()
def validation_bound(
    family: Family, images: ImageSet, start: Start, seed: int, share: tuple[int, int] = (0, 1)
) -> float:
    """Mean J over ``images`` in nats, with the same noise at every call. (Equation 3)

    ``share`` is (rank, number of processes): each measures its own batches, and the mean is the sum of what all return.

    It is the family's own estimate, and may differ a little from what :meth:`goalgen.model.Model.nll_bound` says of whole
    episodes.
    """
    paired, passes, total = start.pairs_with(images.names), -(-family.least_validation // len(images)), 0.0
    for repeat in range(passes):
        for first in range(share[0] * BATCH, len(images), share[1] * BATCH):
            part = images.subset(range(first, min(first + BATCH, len(images))))
            goals, names = to_unit(part.images, part.levels), part.names if paired else None
            generator = rng.generator(seed, "validation", first + repeat * len(images))
            canvas = start(len(goals), goals=goals, names=names, generator=generator)
            task = Task(canvas, goals, part.labels if family.num_labels else None, names).to(family.device)
            total += family.estimate(task, lambda _, source=generator: source).total.sum().item()  # type: ignore[misc]
    return total / (passes * len(images))


@torch.no_grad()
def draw_snapshot(family: Family, images: ImageSet, start: Start, seed: int, folder: Path, step: int) -> Path:
    """Samples and trajectories of the S-agent, always from the same noise; ``images`` are held-out goals for the start.

    Returns the picture of the samples.
    """
    generator, index = rng.generator(seed, "pictures"), torch.arange(COUNT)
    shown = images.subset(index % len(images))
    names = shown.names if start.pairs_with(images.names) else None
    canvas = start(COUNT, goals=to_unit(shown.images, shown.levels), names=names, generator=generator)
    label = index % family.num_labels if family.num_labels else None
    noise = draw_noise(family.environment, COUNT, generator).to(family.device)
    states = sample_rollout(family, Task(canvas, None, label).to(family.device), noise).states
    frames = to_bytes(from_unit(family.environment.canvases(states).cpu(), family.levels), family.levels)
    save_png(tile(frames[-1], columns_for(COUNT)), folder / f"samples-{step:08d}.png")
    save_png(film_strip(frames[:, :ROWS]), folder / f"trajectories-{step:08d}.png")
    save_gif(frames[:, :MOVING], folder / "trajectories.gif", columns=4)
    return folder / f"samples-{step:08d}.png"

"""Pictures of a run while it trains."""

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
from goalgen.training.batches import pairing_names

COUNT, ROWS, MOVING = 64, 8, 16
"""Samples in the picture, in the film strip, and in the GIF."""


@torch.no_grad()
def draw_snapshot(family: Family, images: ImageSet, start: Start, seed: int, folder: Path, step: int) -> None:
    """Samples and trajectories of the S-agent, always from the same noise; ``images`` are held-out goals for the start."""
    generator = rng.generator(seed, "pictures")
    index = torch.arange(COUNT) % len(images)
    goals = to_unit(images.images[index], images.levels) if start.needs_goal else None
    partners = None if start.needs_goal else pairing_names(start, images)
    names = None if partners is None else [partners[i] for i in index.tolist()]
    canvas = start(COUNT, goals=goals, names=names, generator=generator)
    label = torch.arange(COUNT) % family.num_labels if family.num_labels else None
    noise = draw_noise(family.environment, COUNT, generator).to(family.device)
    states = sample_rollout(family, Task(canvas, None, label).to(family.device), noise).states
    frames = to_bytes(from_unit(family.environment.canvases(states).cpu(), family.levels), family.levels)
    save_png(tile(frames[-1], columns_for(COUNT)), folder / f"samples-{step:08d}.png")
    save_png(film_strip(frames[:, :ROWS]), folder / f"trajectories-{step:08d}.png")
    save_gif(frames[:, :MOVING], folder / "trajectories.gif", columns=4)

"""Samples: drawn block by block, and written as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goalgen import rng
from goalgen.data import from_unit, to_bytes
from goalgen.errors import GoalgenError
from goalgen.family import Family
from goalgen.pictures import columns_for, film_strip, save_gif, save_png, tile, to_pil
from goalgen.rollout import draw_noise, sample_rollout
from goalgen.starts import Start
from goalgen.storage import write_bytes, write_text
from goalgen.task import Task

BLOCK = 64
"""Samples that are computed together. It is fixed, because arithmetic on another number of rows may round otherwise:
so sample i is the same to the last bit however many are asked for."""


@dataclass
class Sampled:
    """New images."""

    images: Tensor
    """(N, C, height, width) uint8, 0..255"""
    states: Tensor
    """canvases x_0 .. x_H as pictures, (H + 1, N, C, height, width) uint8, 0..255"""
    levels: Tensor
    """the images in the grey levels of the data, 0..levels-1, (N, C, height, width) uint8"""
    start: str
    """the initial state they began from, "(trained with ...)" added where it is another one"""
    network_evaluations: int
    """S-agent evaluations for one image"""
    labels: Tensor | None = None
    """(N,) int64, of a model that is conditioned on labels"""
    sampler: str = "model"
    """"model", or how the sampler differs from the model of the bound"""
    pixels: str = "the rounded last canvas"
    """how the images came from the last states"""
    files: list[dict[str, bytes]] = field(default_factory=list)
    """further files of each image by extension, where the family has some"""
    guesses: Tensor | None = None
    """what the S-agent had in mind at the steps at which it had something, and the images: (steps + 1, N, C, height, width) uint8"""


@dataclass(frozen=True)
class Wanted:
    """Which images to draw; each depends on (seed, its index) alone."""

    num: int
    seed: int
    first: int
    """index of the first image"""
    start: Start
    each_start: Tensor | None
    """(num, C, height, width), where a start was given for every image"""
    goals: Tensor | None
    """(num, C, height, width) in [-1, 1], for a start that is a function of the goal"""
    names: Sequence[str] | None
    labels: Tensor | None
    """(num,) int64"""
    temperature: float
    path: Sequence[int]
    """steps to stop at"""
    draw_pixels: bool = False
    """draw the pixels from p(g | x_H) rather than round the last canvas"""
    correlation: float = 0.0
    """share of the noise of an action that is taken from the canvas"""
    guesses: bool = False
    """keep what the S-agent has in mind on the way"""

    def sampler(self, horizon: int) -> str:
        """What is another sampler than the model of the bound, which takes all H steps at temperature 1."""
        parts = [f"temperature {self.temperature:g}"] if self.temperature != 1 else []
        parts += [f"correlation {self.correlation:g}"] if self.correlation else []
        parts += [f"{len(self.path) - 1} of {horizon} steps"] if len(self.path) <= horizon else []
        parts += ["the draft"] if self.path[-1] < horizon else []
        return ", ".join(parts) or "model"

    def task(self, block: int) -> Task:
        """Initial states and labels of a block of images; rows outside the request repeat one inside it."""
        rows = (
            torch.arange(block * BLOCK, (block + 1) * BLOCK).clamp(self.first, self.first + self.num - 1) - self.first
        )
        goals, label = (None if x is None else x[rows] for x in (self.goals, self.labels))
        if self.each_start is not None:
            canvas = self.each_start.to(torch.float32)[rows]
        else:
            names = None if self.names is None else [self.names[i] for i in rows.tolist()]
            generator = rng.generator(self.seed, "sample start", block)
            canvas = self.start(BLOCK, goals=goals, names=names, generator=generator)
        return Task(canvas, None, label, None)


def draw_samples(family: Family, wanted: Wanted, trained_start: str) -> Sampled:
    """Let the S-agent draw what is wanted.

    Args:
        trained_start: the initial state that the model was trained with, for the label of another one.

    Raises:
        GoalgenError: pixels are to be drawn of a draft.
    """
    if wanted.draw_pixels and wanted.path[-1] < family.horizon:
        raise GoalgenError("--draw-pixels needs a last canvas, and so few --steps end with a draft; take one step more")
    first, num = wanted.first, wanted.num
    canvases: list[Tensor] = []
    files: list[dict[str, bytes]] = []
    guesses: list[Tensor] = []
    for block in range(first // BLOCK, -(-(first + num) // BLOCK)):
        noise = draw_noise(family.environment, BLOCK, rng.generator(wanted.seed, "sample", block)).to(family.device)
        task = wanted.task(block).to(family.device)
        episodes = sample_rollout(family, task, noise, wanted.temperature, wanted.path, wanted.correlation)
        canvases.append(family.environment.canvases(episodes.states).cpu())
        if episodes.draft is not None:
            canvases[-1][-1] = episodes.draft.cpu()
        if wanted.draw_pixels:
            generator = rng.generator(wanted.seed, "sample pixels", block)
            canvases[-1][-1] = family.likelihood.draw(episodes.states[-1], generator).cpu()
        files += family.files(episodes)
        if wanted.guesses and episodes.guesses:
            guesses.append(torch.stack(episodes.guesses).cpu())
    kept = slice(first % BLOCK, first % BLOCK + num)
    frames = from_unit(torch.cat(canvases, 1)[:, kept], family.levels)
    spec = wanted.start.spec
    spec = spec if spec == trained_start else f"{spec} (trained with {trained_start})"
    pictures = to_bytes(frames, family.levels)
    thought = None
    if guesses:
        thought = to_bytes(from_unit(torch.cat(guesses, 1)[:, kept], family.levels), family.levels)
        thought = torch.cat([thought, pictures[-1:]])
    return Sampled(
        pictures[-1], pictures, frames[-1], spec, len(frames) - 1, wanted.labels, wanted.sampler(family.horizon),
        "drawn from p(g | x_H)" if wanted.draw_pixels else "the rounded last canvas", files[kept], thought,
    )  # fmt: skip


def write_samples(sampled: Sampled, out: Path, *, grid: bool, trajectory: bool, facts: dict[str, Any]) -> list[Path]:
    """Write PNGs 00000.png, ... and, as asked, grid.png, trajectories.png, trajectories.gif and guesses.png, into ``out``."""
    written = []
    for i, image in enumerate(sampled.images, facts.get("first", 0)):
        written.append(out / f"{i:05d}.png")
        save_png(to_pil(image), written[-1])
    for i, files in enumerate(sampled.files, facts.get("first", 0)):
        for extension, content in files.items():
            written.append(out / f"{i:05d}{extension}")
            write_bytes(written[-1], content)
    if grid:
        written.append(out / "grid.png")
        save_png(tile(sampled.images, columns_for(len(sampled.images))), written[-1])
    if trajectory:
        written += [out / "trajectories.png", out / "trajectories.gif"]
        save_png(film_strip(sampled.states[:, :8]), written[-2])
        save_gif(sampled.states[:, :64], written[-1])
    if trajectory and sampled.guesses is not None:
        written.append(out / "guesses.png")
        save_png(film_strip(sampled.guesses[:, :8]), written[-1])
    about = {
        **facts, "start": sampled.start, "network_evaluations": sampled.network_evaluations, "sampler": sampled.sampler,
        "pixels": sampled.pixels,
    }  # fmt: skip
    write_text(out / "samples.json", json.dumps(about, indent=2) + "\n")
    return written

"""Samples: drawn block by block, and written as files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goalgen import rng
from goalgen.data import from_unit, to_bytes
from goalgen.errors import GoalgenError
from goalgen.family import Family
from goalgen.outputs import OutputFolder
from goalgen.pictures import columns_for, film_strip, save_gif, save_png, tile, tile_svg, to_pil
from goalgen.rollout import draw_noise, sample_rollout
from goalgen.starts import Start
from goalgen.storage import write_bytes
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
    """canvases x_0 .. x_H as pictures, (H + 1, N, C, height, width) uint8, 0..255; the last alone, (1, N, ...), where they were not
    to be kept"""
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
    canvases: bool = True
    """keep the canvases on the way, and not the last alone"""

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
    frames: list[Tensor] = []  # of each block, as grey levels
    files: list[dict[str, bytes]] = []
    guesses: list[Tensor] = []
    evaluations = 0
    for block in range(first // BLOCK, -(-(first + num) // BLOCK)):
        noise = draw_noise(family.environment, BLOCK, rng.generator(wanted.seed, "sample", block)).to(family.device)
        task = wanted.task(block).to(family.device)
        episodes = sample_rollout(family, task, noise, wanted.temperature, wanted.path, wanted.correlation)
        evaluations = len(episodes.states) - 1
        canvases = family.environment.canvases(episodes.states if wanted.canvases else episodes.states[-1:]).cpu()
        if episodes.draft is not None:
            canvases[-1] = episodes.draft.cpu()
        if wanted.draw_pixels:
            generator = rng.generator(wanted.seed, "sample pixels", block)
            canvases[-1] = family.likelihood.draw(episodes.states[-1], generator).cpu()
        if not bool(torch.isfinite(canvases).all()):
            raise GoalgenError(
                "the samples are not finite: the weights are damaged, or the --temperature is too far from 1"
            )
        frames.append(from_unit(canvases, family.levels))
        files += family.files(episodes)
        if wanted.guesses and episodes.guesses:
            guesses.append(from_unit(torch.stack(episodes.guesses).cpu(), family.levels))
    kept = slice(first % BLOCK, first % BLOCK + num)
    levels = torch.cat(frames, 1)[:, kept]
    spec = wanted.start.spec
    spec = spec if spec == trained_start else f"{spec} (trained with {trained_start})"
    pictures = to_bytes(levels, family.levels)
    thought = None
    if guesses:
        thought = torch.cat([to_bytes(torch.cat(guesses, 1)[:, kept], family.levels), pictures[-1:]])
    return Sampled(
        pictures[-1], pictures, levels[-1], spec, evaluations, wanted.labels, wanted.sampler(family.horizon),
        "drawn from p(g | x_H)" if wanted.draw_pixels else "the rounded last canvas", files[kept], thought,
    )  # fmt: skip


def pieces(num: int, first: int = 0) -> Iterator[tuple[int, int]]:
    """Whole blocks of the samples ``first`` to ``first + num - 1``: (first index, how many) of each."""
    at = first
    while at < first + num:
        size = min(BLOCK - at % BLOCK, first + num - at)
        yield at, size
        at += size


SHOWN_STRIP, SHOWN_GIF, SHOWN_GRID = 8, 64, 1024
"""Images, the first ones, in the film strip, in the GIF, and in the grid."""


def write_samples(
    parts: Iterable[Sampled], place: OutputFolder, num: int, *, grid: bool, trajectory: bool, facts: dict[str, Any]
) -> tuple[Sampled, list[Path]]:
    """Write PNGs 00000.png, ... part by part and, as asked, grid.png, trajectories.png, trajectories.gif and guesses.png.

    Memory does not grow with the number of images: what is shown of many is of the first ones.

    Args:
        parts: samples in order, ``num`` in all; the first ``SHOWN_GIF`` with their canvases, if trajectories are asked for.
        place: where to.
        facts: for samples.json; "first" is the index of the first image.

    Returns:
        The first part, and the paths of the pictures of many: also grid.svg, where the samples' files are drawings.

    Raises:
        GoalgenError: a file cannot be written, or would take the place of another's.
    """
    rest = iter(parts)
    head, at = next(rest), facts["first"]
    extensions = [".png", *(head.files[0] if head.files else {})]
    pictures = ["grid.png"] if grid else []
    pictures += ["grid.svg"] if grid and any(name.endswith(".svg") for name in extensions) else []
    pictures += ["trajectories.png", "trajectories.gif"] if trajectory else []
    pictures += ["guesses.png"] if trajectory and head.guesses is not None else []
    about = {
        **facts, "start": head.start, "network_evaluations": head.network_evaluations, "sampler": head.sampler,
        "pixels": head.pixels,
    }  # fmt: skip
    names = [f"{i:05d}{extension}" for i in range(at, at + num) for extension in extensions]
    shown = _Shown()
    with place.filling([*names, *pictures], about) as folder:
        for part in chain([head], rest):
            for i, image in enumerate(part.images, at):
                save_png(to_pil(image), folder / f"{i:05d}.png")
            for i, files in enumerate(part.files, at):
                for extension, content in files.items():
                    write_bytes(folder / f"{i:05d}{extension}", content)
            shown.add(part, at - facts["first"], grid, trajectory)
            at += len(part.images)
        shown.write(folder)
    return head, [place.folder / name for name in pictures]


@dataclass
class _Shown:
    """What pictures of many images show, of the first ones."""

    images: list[Tensor] = field(default_factory=list)
    drawings: list[bytes] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    guesses: list[Tensor] = field(default_factory=list)

    def add(self, part: Sampled, done: int, grid: bool, trajectory: bool) -> None:
        """Keep what is shown of a part that comes after ``done`` images."""
        if grid and done < SHOWN_GRID:
            self.images.append(part.images)
            # The one that draws itself comes first: .drawing.svg, .svg.
            found = [sorted(name for name in files if name.endswith(".svg")) for files in part.files]
            self.drawings += [files[names[0]] for files, names in zip(part.files, found, strict=True) if names]
        if trajectory and done < SHOWN_GIF:
            self.states.append(part.states)
            self.guesses += [] if part.guesses is None else [part.guesses]

    def write(self, folder: Path) -> None:
        """Write grid.png, grid.svg, trajectories.png, trajectories.gif, guesses.png: those for which something was kept."""
        if self.images:
            images = torch.cat(self.images)[:SHOWN_GRID]
            save_png(tile(images, columns_for(len(images))), folder / "grid.png")
        if self.drawings:
            drawings = self.drawings[:SHOWN_GRID]
            write_bytes(folder / "grid.svg", tile_svg(drawings, columns_for(len(drawings))))
        if self.states:
            frames = torch.cat(self.states, 1)
            save_png(film_strip(frames[:, :SHOWN_STRIP]), folder / "trajectories.png")
            save_gif(frames[:, :SHOWN_GIF], folder / "trajectories.gif")
        if self.guesses:
            save_png(film_strip(torch.cat(self.guesses, 1)[:, :SHOWN_STRIP]), folder / "guesses.png")

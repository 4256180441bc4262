"""Pictures of a run: learning curves, KL by step, action usage, trajectories and nearest training images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from goalgen import rng
from goalgen.data import ImageSet, Splits, binarize_images, from_unit, load_data, to_bytes
from goalgen.errors import GoalgenError
from goalgen.evaluation import held_out
from goalgen.figures import BLUE, DPI, HEAT, ORANGE, SKY, VERMILION, WIDTH, heat_figure, new_figure, place, write
from goalgen.metrics.statistics import nearest_rows
from goalgen.model import Model, load
from goalgen.nearby import looked
from goalgen.outputs import OutputFolder
from goalgen.pictures import film_strip, tile, to_pil
from goalgen.storage import load_tensors, one_line, write_atomically
from goalgen.training.checkpoints import list_checkpoints
from goalgen.training.log import read_log

EPISODES = 8  # rows of a film strip
FRAMES = 16  # most canvases shown of an episode; longer ones are shown at evenly spaced steps
SHOWN, NEIGHBOURS = 10, 4  # samples, and training images below each
COMPARED = 256  # samples, and test images, in the mean distance to the nearest training image


@one_line()
def plot_run(folder: Path, out: Path | None = None, *, seed: int = 0, force: bool = False) -> list[Path]:
    """Draw a run: curves.png, kl_by_step.png, usage.png, trajectories.png and neighbours.png. Returns their paths.

    Args:
        folder: the run.
        out: folder for the PNGs; unset: plots/ in the run.
        seed: of the samples and of the choice of test images.
        force: replace the pictures of an earlier plot in ``out``; in plots/ they are replaced anyway.

    Warns:
        UserWarning: the data or the initial states are no longer there; pictures that need them are left out.

    Raises:
        GoalgenError: the folder holds no run, or one with no log or no model yet; or ``out`` holds anything else.
    """
    folder = folder.expanduser()
    place = OutputFolder(folder / "plots" if out is None else out, "plots.json", "plots", force=force or out is None)
    curves = read_curves(_read_records(folder), folder)
    model = load(folder)
    figures = {"curves.png": draw_curves(curves), "kl_by_step.png": draw_kl(curves)}
    kept = list_checkpoints(folder)
    tensors = load_tensors(kept[-1] / "raw.safetensors")[0] if kept else model.family.state_dict()
    figures |= model.family.figures(tensors)
    figures |= _sampled_figures(model, seed)
    with place.filling(list(figures), {"run": folder.resolve().as_posix(), "seed": seed}) as target:
        for name, figure in figures.items():
            write_atomically(target / name, partial(figure.savefig, format="png", dpi=DPI))
    return [place.folder / name for name in figures]


def _sampled_figures(model: Model, seed: int) -> dict[str, Figure]:
    """Pictures for which the model must act: those that its data and its initial states allow."""
    data = _load_data(model)
    try:
        start = model.start()
    except GoalgenError as error:
        warnings.warn(f"trajectories and neighbours are left out: {error}", stacklevel=4)
        return {}
    if data is None:
        return {} if start.needs_goal else {"trajectories.png": draw_trajectories(model, None, seed)}
    chosen = torch.randperm(len(data.test), generator=rng.generator(seed, "plot goals"))[:COMPARED]
    goals, train = data.test.subset(chosen), data.train.images
    if data.binarize:  # as `goalgen evaluate` does
        train = binarize_images(train, data.train.levels, rng.generator(0, "binarised training images"))
    trajectories, neighbours = draw_trajectories(model, goals, seed), draw_neighbours(model, train, goals, seed)
    return {"trajectories.png": trajectories, "neighbours.png": neighbours}


@dataclass(frozen=True)
class Curves:
    """log.jsonl as columns: N records of training and M measurements on held-out images."""

    steps: np.ndarray  # (N,) optimiser steps
    seconds: np.ndarray  # (N,) of training
    bits_per_dim: np.ndarray  # (N,) bound on training images, weights of that moment
    reconstruction: np.ndarray  # (N,) nats/image
    kl: np.ndarray  # (H, N) nats/image
    validation_steps: np.ndarray  # (M,)
    validation_bits: np.ndarray  # (M,) bound on held-out images, averaged weights


def read_curves(records: Sequence[dict[str, Any]], folder: Path) -> Curves:
    """Turn the records of a log into columns.

    Raises:
        GoalgenError: no record of training among them; the message names ``folder``.
    """
    training = [r for r in records if "bits_per_dim" in r]
    held_out = [r for r in records if "validation_bits_per_dim" in r]
    if not training:
        raise GoalgenError(f"{folder / 'log.jsonl'} holds no record of training yet; let the run train longer")

    def column(name: str, rows: Sequence[dict[str, Any]] = training) -> np.ndarray:
        return np.array([r[name] for r in rows], dtype=np.float64)

    horizon = sum(key.startswith("kl_nats_") for key in training[0])
    kl = np.stack([column(f"kl_nats_{h}") for h in range(horizon)])
    steps, seconds, bits, reconstruction = map(column, ("step", "seconds", "bits_per_dim", "reconstruction_nats"))
    validation = column("step", held_out), column("validation_bits_per_dim", held_out)
    return Curves(steps, seconds, bits, reconstruction, kl, *validation)


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Centred running mean over ``width`` (odd, at most len(values)) values; the window shrinks at both ends."""
    window = np.ones(width)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def settled(values: np.ndarray) -> np.ndarray:
    """(..., N) without the first tenth (of 10 or more): it is far off, and would press the rest of a picture flat."""
    return values[..., -(-values.shape[-1] // 10) :] if values.shape[-1] >= 10 else values


def _read_records(folder: Path) -> list[dict[str, Any]]:
    if (folder / "log.jsonl").is_file():
        return read_log(folder / "log.jsonl")
    reason = "is a saved model" if (folder / "model.safetensors").is_file() else "holds no log.jsonl"
    gone = f"does not exist {looked(str(folder))}"
    raise GoalgenError(f"{folder} {reason if folder.exists() else gone}; plots need the folder of a run")


def _load_data(model: Model) -> Splits | None:
    """The run's data, or None, with a warning, if they are gone or are others now."""
    try:
        data = load_data(model.config.data)
        if (data.test.shape, data.test.levels) != (model.shape, model.levels):
            now, then = f"{data.test.shape} of {data.test.levels}", f"{model.shape} of {model.levels}"
            raise GoalgenError(f"its images are now {now} levels, the model's are {then}")
        return held_out(model, data)
    except GoalgenError as error:
        warnings.warn(f"the run's data cannot be used, pictures that need them are left out: {error}", stacklevel=5)
        return None


def draw_curves(curves: Curves) -> Figure:
    """The bound over training, and the two terms that it is the sum of."""
    figure = new_figure(740, arranged=True)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    width = max(1, len(curves.steps) // 20) | 1
    top.plot(curves.steps, curves.bits_per_dim, color=SKY, lw=0.8, label="training images (weights of the moment)")
    if width > 1:
        top.plot(curves.steps, smooth(curves.bits_per_dim, width), color=BLUE, lw=2, label=f"mean of {width} records")
    if len(curves.validation_bits):
        _draw_validation(top, curves)
    seen = np.concatenate([settled(curves.bits_per_dim), settled(curves.validation_bits)])
    margin = 0.08 * np.ptp(seen) or 0.1
    top.set_ylim(seen.min() - margin, seen.max() + margin)
    top.set(title="Bound on the negative log-likelihood", ylabel="bits/dim")
    top.legend(frameon=False, loc="upper right")
    top.spines["right"].set_visible(False)
    _draw_terms(bottom, curves, width)
    bottom.set_xlim(0, 1.015 * max([*curves.steps, *curves.validation_steps]))
    _add_time(top, curves)
    return figure


def _draw_validation(axes: Axes, curves: Curves) -> None:
    steps, bits, best = curves.validation_steps, curves.validation_bits, int(curves.validation_bits.argmin())
    axes.plot(steps, bits, color=VERMILION, lw=2, marker="o", ms=4, label="held-out images (averaged weights)")
    label = f"best: {bits[best]:.3f} bits/dim at step {steps[best]:,.0f}"
    axes.scatter(steps[best], bits[best], 280, VERMILION, marker="*", ec="black", label=label, clip_on=False, zorder=5)


def _draw_terms(axes: Axes, curves: Curves, width: int) -> None:
    terms = {"KL: cost of the actions": curves.kl.sum(0), "reconstruction: cost of the pixels": curves.reconstruction}
    labels = [f"{name} ({value[-width:].mean():,.1f} at the end)" for name, value in terms.items()]
    areas = np.stack([smooth(value, width) for value in terms.values()])
    axes.stackplot(curves.steps, areas, labels=labels, colors=(ORANGE, SKY), edgecolor="white")
    axes.set_ylim(0, 1.4 * settled(areas.sum(0)).max())
    axes.set(title="Its two terms on training images, stacked", xlabel="optimiser step", ylabel="nats/image")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right", reverse=True)


def _add_time(axes: Axes, curves: Curves) -> None:
    """Ticks along the upper edge at round times of training."""
    total = curves.seconds[-1]
    unit, size = ("hours", 3600) if total > 18000 else ("minutes", 60) if total > 300 else ("seconds", 1)
    times = np.array(MaxNLocator(8).tick_values(0, total / size))
    times = times[times <= total / size]
    steps = np.interp(times * size, np.append(0, curves.seconds), np.append(0, curves.steps))
    upper = axes.secondary_xaxis("top")
    upper.set_xticks(steps, labels=[f"{t:g}" for t in times])
    upper.set_xlabel(f"time of training ({unit})")


def draw_kl(curves: Curves) -> Figure:
    """Where in the episode the information enters, over training and at its end."""
    horizon, count = curves.kl.shape
    figure, left, right = heat_figure(horizon)
    most = max(settled(curves.kl).max(), 1e-3)
    edges = np.append(0, curves.steps), np.arange(horizon + 1) - 0.5
    mesh = left.pcolormesh(*edges, curves.kl, cmap=HEAT, vmin=0, vmax=most)
    extend = "max" if curves.kl.max() > most else "neither"
    figure.colorbar(mesh, ax=left, extend=extend, pad=0.02, label="nats/image")
    left.set(title="KL of the two policies at each step, over training", xlabel="optimiser step")
    final = curves.kl[:, -max(1, count // 10) :].mean(1)
    bars = right.barh(np.arange(horizon), final, color=BLUE)
    right.bar_label(bars, fmt="%.2f", padding=3, fontsize=min(9, 540 / horizon))
    right.set_xlim(0, 1.25 * max(final.max(), 1e-3))
    right.set(title=f"At the end: {final.sum():.1f} nats in all", xlabel="nats/image, last tenth of the run")
    return figure


def draw_trajectories(model: Model, goals: ImageSet | None, seed: int) -> Figure:
    """Film strips of the S-agent and, if there are ``goals``, of the GC-agent told them."""
    given = None if goals is None else goals.images[torch.arange(EPISODES) % len(goals)]
    sampled = model.sample(EPISODES, seed, goals=given)
    strips = {f"The S-agent draws new images (start: {sampled.start}, seed {seed})": sampled.states}
    if goals is not None:
        goals = goals.subset(range(min(EPISODES, len(goals))))
        strips["The GC-agent is told a goal, the test image on the right"] = told_frames(model, goals, seed)
    shown = np.unique(np.linspace(0, model.horizon, min(FRAMES, model.horizon + 1)).round().astype(int))
    _, height, width = model.shape
    wanted = max(1, (60 if len(shown) > 4 else 96) // max(height, width))
    room = (WIDTH - 80) / ((len(shown) + 1) * (width + 1) + 1)
    factor = min(wanted, int(room)) if room >= 1 else room  # whole pixels, unless the images must shrink
    left, top, across = 24, 44, factor * (len(shown) * (width + 1) + 1)
    wide, high = left + across + factor * (width + 2) + 40, 90 + factor * (EPISODES * (height + 1) + 1)
    beside = wide <= WIDTH / 2 and len(strips) == 2
    right, down = (WIDTH / 2, 0) if beside else (0, high)  # where the second strip is
    figure = new_figure(int(high + down * (len(strips) - 1)), WIDTH if beside else int(max(wide, 640)))
    for i, (title, frames) in enumerate(strips.items()):
        strip = film_strip(frames[shown], scale=1)
        axes = place(figure, strip, left + i * right, top + i * down, factor)
        axes.set_title(title, loc="left", fontsize=12)
        axes.set_xticks((np.arange(len(shown)) + 0.5) * (width + 1), labels=[str(h) for h in shown], fontsize=9)
        axes.set_xlabel("canvas after h steps")
    if goals is not None:
        column = tile(to_bytes(goals.images, model.levels), 1, scale=1)
        place(figure, column, left + right + across + 16, top + down, factor).set_xlabel("goal")
    return figure


def told_frames(model: Model, goals: ImageSet, seed: int) -> Tensor:
    """Canvases of the GC-agent told ``goals``, (H + 1, N, C, height, width) uint8, 0..255."""
    start = model.start()
    partners = start(len(goals), names=goals.names) if start.pairs_with(goals.names) else None
    labels = goals.labels if model.family.num_labels else None
    states = model.rollout(goals.images, seed, start=partners, labels=labels).states
    canvases = model.family.environment.canvases(states)
    return to_bytes(from_unit(canvases.cpu(), model.levels), model.levels)


def draw_neighbours(model: Model, train: Tensor, goals: ImageSet, seed: int) -> Figure:
    """Samples above their nearest training images: a model that copies its data shows here."""
    parts = enumerate(goals.images.split(64))  # not all at once, for samples keep their trajectories
    samples = torch.cat([model.sample(len(part), seed, goals=part, first=64 * i).levels for i, part in parts])
    unit = (model.levels - 1) * samples[0].numel() ** 0.5  # root mean square over pixels, black 0 and white 1
    means = [nearest_rows(x.flatten(1), train.flatten(1))[0].mean() / unit for x in (samples, goals.images)]
    distance, index = nearest_rows(samples[:SHOWN].flatten(1), train.flatten(1), NEIGHBOURS)
    figure = new_figure(102 + 112 * (1 + index.shape[1]))
    write(figure, WIDTH / 2, 22, "Samples and their nearest training images", fontsize=14)
    line = f"Mean distance (root mean square of pixels 0 to 1) to the nearest of {len(train):,} training images:\n"
    line += f"{means[1]:.3f} for {len(goals)} test images, {means[0]:.3f} for {len(goals)} samples (far lower: copies)"
    write(figure, WIDTH / 2, 58, line)
    for row in range(1 + index.shape[1]):
        top = 98 + 112 * row if row else 84
        write(figure, 46, top + 42, f"nearest\n{row}" if row else "sample")
        for i, sample in enumerate(samples[:SHOWN]):
            picture = to_pil(to_bytes(train[index[i, row - 1]] if row else sample, model.levels))
            axes = place(figure, picture, 94 + 90 * i, top, 84 / max(model.shape[1:]))
            if row:
                axes.set_xlabel(f"{distance[i, row - 1] / unit:.3f}", labelpad=3)
    return figure

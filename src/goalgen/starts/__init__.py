"""Initial states x_0: what an episode begins from, in training and in sampling.

A start is named by a string, ``kind[:parameter]`` or a path, which is saved with the run. States are
float32 (B, C, height, width) in [-1, 1] (noise goes beyond).
"""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from goalgen.config import DataConfig
from goalgen.data.images import EXTENSIONS
from goalgen.errors import GoalgenError
from goalgen.nearby import looked, settled
from goalgen.starts.kinds import FolderStart, GoalStart, ImageStart, NoiseStart, Shape, Start, TensorStart

KINDS = (
    "mean", "constant[:LEVEL]", "noise[:STD]", "grey", "blur[:SIGMA]", "downsample[:FACTOR]", "mask[:FRACTION]", "edges",
    "an image file", "a folder of images",
)  # fmt: skip
"""The starts that :func:`make_start` knows, as messages list them."""

# Whether a kind takes a parameter, by its name.
_PARAMETER = {kind.partition("[")[0]: "[" in kind for kind in KINDS if " " not in kind}


def settled_start(spec: str) -> str:
    """A start as a run keeps it: a path in full, any other as it is."""
    return settled(spec, list(_PARAMETER))


def make_start(spec: str, shape: Shape, mean: Tensor | None = None, data: DataConfig | None = None) -> Start:
    """Return the start that ``spec`` names.

    The name of a kind is always that kind; a file or folder that is called so is written ``./mean``.

    Args:
        spec: one of ``KINDS``.
        shape: (C, height, width) of the states.
        mean: (C, height, width) float in [-1, 1], the mean training image; needed by "mean" only.
        data: how image files are read (``background``, ``corrupt``).

    Raises:
        GoalgenError: no such kind, a parameter out of range, a path that cannot be read, images of another size.
    """
    kind, colon, parameter = spec.partition(":")
    if kind in _PARAMETER:
        if colon and not _PARAMETER[kind]:
            raise GoalgenError(f"the start {kind!r} takes no parameter; write {kind} instead of {spec}")
        if colon and not parameter:
            raise GoalgenError(
                f"the start {spec!r} lacks its parameter; write {kind}:NUMBER, or {kind} for the default"
            )
        return _make(kind, spec, parameter, shape, mean)
    path, reading = Path(spec).expanduser(), data or DataConfig()
    if spec and path.exists():
        return FolderStart(spec, shape, reading) if path.is_dir() else ImageStart.of_file(spec, shape, reading)
    if re.search(r"^[~.]|[\\/]|^[A-Za-z]:$", spec) or spec.lower().endswith(EXTENSIONS):  # it looks like a path
        raise GoalgenError(
            f"the start {spec} does not exist {looked(spec)}; check the path, or choose one of {', '.join(KINDS)}"
        )
    raise GoalgenError(f"no start is called {spec!r}; there are: {', '.join(KINDS)}")


def _make(kind: str, spec: str, parameter: str, shape: Shape, mean: Tensor | None) -> Start:
    number = partial(_number, spec, parameter)
    match kind:
        case "mean":
            if mean is None:
                raise GoalgenError(
                    "the start 'mean' needs the mean of the training images; pass it, or choose another start"
                )
            return ImageStart(spec, shape, mean)
        case "constant":
            return ImageStart(spec, shape, torch.full(shape, 2 * number(0.5, 0, 1, open_low=False) - 1))
        case "noise":
            return NoiseStart(spec, shape, number(1.0, 0, 10))
        case "grey":
            if shape[0] != 3:
                raise GoalgenError(
                    "the start 'grey' needs RGB images: these are grey, nothing to colourise; choose another"
                )
            return GoalStart(spec, shape, grey, steady=True)
        case "blur":
            return GoalStart(spec, shape, partial(blur, sigma=number(1.0, 0, max(shape[1:]))))
        case "downsample":
            factor = number(2.0, 1, max(2, *shape[1:]))
            small = small_size(shape[1], shape[2], factor)
            return GoalStart(spec, shape, partial(downsample, factor=factor), small=small)
        case "mask":
            fraction = number(0.5, 0, 1)
            hidden = middle(shape[1], shape[2], fraction)
            return GoalStart(spec, shape, partial(mask, fraction=fraction), hidden=hidden)
        case _:
            return GoalStart(spec, shape, edges)


def _number(spec: str, parameter: str, default: float, low: float, high: float, *, open_low: bool = True) -> float:
    """Return the parameter of ``spec``, which must lie in (low, high], or [low, high] unless ``open_low``."""
    if not parameter:
        return default
    try:
        value = float(parameter)
    except ValueError:
        raise GoalgenError(f"the start {spec!r} needs a number after the colon, not {parameter!r}") from None
    if not math.isfinite(value) or value > high or value < low or (open_low and value == low):
        bound = f"more than {low:g}" if open_low else f"at least {low:g}"
        raise GoalgenError(f"the start {spec!r} needs a number {bound} and at most {high:g}; try {default:g}")
    return value


# Functions of the goal to start from, by which the S-agent becomes a restorer: images (B, C, height, width) in [-1, 1].


def grey(goals: Tensor) -> Tensor:
    """Return the luma (ITU-R 601) of RGB images (B, 3, height, width), repeated on the three channels."""
    weights = goals.new_tensor([0.299, 0.587, 0.114])
    return (goals * weights[:, None, None]).sum(1, keepdim=True).expand_as(goals).contiguous()


def blur(goals: Tensor, sigma: float) -> Tensor:
    """Return images convolved with a Gaussian of ``sigma`` pixels; beyond the edge the image repeats its edge.

    Summed pixel by pixel in a fixed order: how a convolution of the library rounds depends on the processor and on how many images
    there are, and a share of a batch would not be what the whole batch has.
    """
    radius = math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    images = F.pad(goals, (radius, radius, radius, radius), mode="replicate")
    for dim in (3, 2):
        size = images.shape[dim] - 2 * radius
        total = torch.zeros_like(images.narrow(dim, 0, size))
        for at, weight in enumerate(weights):
            total.add_(images.narrow(dim, at, size), alpha=weight / sum(weights))
        images = total
    return images


def downsample(goals: Tensor, factor: float) -> Tensor:
    """Return images averaged over blocks of about ``factor`` pixels and enlarged again by repetition."""
    height, width = goals.shape[-2:]
    averaged = F.interpolate(goals, size=small_size(height, width, factor), mode="area")
    return enlarge(averaged, (height, width))


def small_size(height: int, width: int, factor: float) -> tuple[int, int]:
    """Return the (height, width) of images that :func:`downsample` has averaged, and not enlarged again."""
    return max(1, round(height / factor)), max(1, round(width / factor))


def enlarge(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images enlarged to ``size`` (height, width) by repetition."""
    return F.interpolate(images, size=size, mode="nearest")


HIDDEN = 0.0
"""What is seen of a pixel that is hidden: mid-grey."""


def mask(goals: Tensor, fraction: float) -> Tensor:
    """Return images with a centred rectangle of about ``fraction`` of their area set to mid-grey (0)."""
    hidden = middle(goals.shape[-2], goals.shape[-1], fraction)
    return goals.masked_fill(hidden.to(goals.device), HIDDEN)


def middle(height: int, width: int, fraction: float) -> Tensor:
    """Return where a centred rectangle of about ``fraction`` of the area lies, bool (height, width)."""
    rows, columns = max(1, round(height * math.sqrt(fraction))), max(1, round(width * math.sqrt(fraction)))
    top, left = (height - rows) // 2, (width - columns) // 2
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[top : top + rows, left : left + columns] = True
    return inside


def edges(goals: Tensor) -> Tensor:
    """Return the magnitude of the Sobel gradient of each channel: -1 where flat, 1 at a step from black to white."""
    channels = goals.shape[1]
    smooth, slope = goals.new_tensor([1.0, 2.0, 1.0]), goals.new_tensor([-1.0, 0.0, 1.0])
    across = torch.outer(smooth, slope).expand(channels, 1, 3, 3)
    padded = F.pad(goals, (1, 1, 1, 1), mode="replicate")
    gradient_x = F.conv2d(padded, across, groups=channels)
    gradient_y = F.conv2d(padded, across.transpose(2, 3), groups=channels)
    # A straight step from -1 to 1 has magnitude (1 + 2 + 1) * 2 = 8; corners exceed it a little.
    return (torch.hypot(gradient_x, gradient_y) / 8).clamp(0, 1) * 2 - 1


__all__ = [
    "HIDDEN",
    "FolderStart",
    "GoalStart",
    "ImageStart",
    "Start",
    "TensorStart",
    "blur",
    "enlarge",
    "make_start",
    "settled_start",
]

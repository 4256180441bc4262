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
from torch import Tensor

from goalgen.config import DataConfig
from goalgen.data.images import EXTENSIONS
from goalgen.errors import GoalgenError
from goalgen.starts.damage import blur, downsample, edges, grey, mask
from goalgen.starts.kinds import FolderStart, GoalStart, ImageStart, NoiseStart, Shape, Start, TensorStart

KINDS = (
    "mean", "constant[:LEVEL]", "noise[:STD]", "grey", "blur[:SIGMA]", "downsample[:FACTOR]", "mask[:FRACTION]", "edges",
    "an image file", "a folder of images",
)  # fmt: skip
"""The starts that :func:`make_start` knows, as messages list them."""

# Whether a kind takes a parameter, by its name.
_PARAMETER = {kind.partition("[")[0]: "[" in kind for kind in KINDS if " " not in kind}


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
        raise GoalgenError(f"the start {spec} does not exist; check the path, or choose one of {', '.join(KINDS)}")
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
            return GoalStart(spec, shape, grey)
        case "blur":
            return GoalStart(spec, shape, partial(blur, sigma=number(1.0, 0, max(shape[1:]))))
        case "downsample":
            return GoalStart(spec, shape, partial(downsample, factor=number(2.0, 1, max(2, *shape[1:]))))
        case "mask":
            return GoalStart(spec, shape, partial(mask, fraction=number(0.5, 0, 1)))
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


__all__ = ["FolderStart", "ImageStart", "Start", "TensorStart", "blur", "make_start"]

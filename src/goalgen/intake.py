"""What people hand to a model, images and labels of many kinds, as the tensors that it works with; or one line that says why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from goalgen.data import from_unit, to_unit
from goalgen.data.files import find_images
from goalgen.data.images import decode_image
from goalgen.data.labels import Labels, label_numbers
from goalgen.errors import GoalgenError

Picture = str | Path | bytes | Image.Image
"""One image: a file, the bytes of one, or a PIL image."""

Images = Tensor | np.ndarray | Picture | Sequence[Picture | Tensor | np.ndarray]
"""Images as a tensor or an array of grey levels, a file, a folder, a PIL image, or a list of these."""


def to_images(given: Images, shape: tuple[int, int, int], levels: int) -> Tensor:
    """Images as (N, C, height, width) uint8 grey levels 0..levels-1.

    Args:
        given: tensors and arrays hold integers 0..levels-1 and are (N, C, height, width), (N, height, width, C), the same
            without C where it is 1, or one such image; files and PIL images are decoded, and their 256 levels become ``levels``.
        shape: (C, height, width) that they must have.

    Raises:
        GoalgenError: they have another size, or are no images.
    """
    if isinstance(given, np.ndarray | Tensor):
        return _from_array(given, shape, levels)
    if isinstance(given, str | Path) and Path(given).expanduser().is_dir():
        given = find_images(Path(given).expanduser())
    if isinstance(given, str | Path | bytes | Image.Image):
        given = [given]
    if not isinstance(given, Sequence):
        raise GoalgenError(f"images must be a tensor, an array, PIL images or files, not {type(given).__name__}")
    if not len(given):
        raise GoalgenError("no images were given")
    arrays = (np.ndarray, Tensor)
    parts = [_from_array(x, shape, levels) if isinstance(x, arrays) else _decoded(x, shape, levels) for x in given]
    return torch.cat(parts)


def _from_array(given: Tensor | np.ndarray, shape: tuple[int, int, int], levels: int) -> Tensor:
    channels, height, width = shape
    kind, size = str(given.dtype).removeprefix("torch."), tuple(given.shape)
    try:
        images = torch.as_tensor(given)
    except TypeError:
        raise GoalgenError(f"images must hold integers, grey levels 0 to {levels - 1}, not {kind}") from None
    if channels == 1 and size[-2:] == (height, width) and images.ndim in (2, 3):
        images = images.reshape(-1, 1, height, width)
    elif size == shape:
        images = images[None]
    elif size[-3:] == (height, width, channels) and size[-3:] != shape and images.ndim in (3, 4):
        images = images.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        wanted = f"(N, {channels}, {height}, {width})" + (f" or (N, {height}, {width})" if channels == 1 else "")
        raise GoalgenError(f"images must be {wanted}; these are {size}: resize or convert them first")
    if images.dtype == torch.bool or images.is_floating_point() or images.is_complex():
        raise GoalgenError(
            f"images must be uint8 or another integer type, grey levels 0 to {levels - 1}; these are {kind}: scale and round them first"
        )
    if len(images):
        low, high = int(images.min()), int(images.max())
        if low < 0 or high >= levels:
            raise GoalgenError(
                f"images must hold grey levels 0 to {levels - 1}; found {high if high >= levels else low}"
            )
    return images.to(torch.uint8)


def _decoded(given: object, shape: tuple[int, int, int], levels: int) -> Tensor:
    if not isinstance(given, str | Path | bytes | Image.Image):
        raise GoalgenError(f"an image must be a tensor, an array, a PIL image or a file, not {type(given).__name__}")
    name = str(given) if isinstance(given, str | Path) else "the image"
    image = decode_image(Path(given).expanduser() if isinstance(given, str) else given, channels=shape[0], name=name)
    if tuple(image.shape) != shape:
        raise GoalgenError(
            f"{name} is {image.shape[1]}x{image.shape[2]} (height x width), the model's images are {shape[1]}x{shape[2]}: "
            "resize it first"
        )
    return from_unit(to_unit(image[None], 256), levels)


Begin = str | Path | Tensor | np.ndarray | Image.Image | None
"""An initial state: its name, canvases, or images."""


def to_canvas(start: Begin, shape: tuple[int, int, int], levels: int) -> str | Tensor | None:
    """A start as its name, or as canvases in [-1, 1], (C, height, width) or (N, C, height, width).

    Args:
        start: floats are canvases already; integers are grey levels, and PIL images are decoded.

    Raises:
        GoalgenError: see :func:`to_images`.
    """
    if start is None or isinstance(start, str | Path):
        return None if start is None else str(start)
    if isinstance(start, np.ndarray | Tensor) and (array := torch.as_tensor(start)).is_floating_point():
        return array
    canvases = to_unit(to_images(start, shape, levels), levels)
    return canvases[0] if len(canvases) == 1 else canvases


def to_labels(labels: Labels | None, num: int, classes: Sequence[str]) -> Tensor | None:
    """Labels as (num,) int64 on the CPU, for a model of these classes (none: it is told no labels).

    Raises:
        GoalgenError: the model is not told labels, or needs them; or they are not so many, or not among its classes.
    """
    if labels is None:
        if classes:
            raise GoalgenError("this model is conditioned on labels: give the label of every image")
        return None
    if not classes:
        raise GoalgenError("this model is not conditioned on labels (--condition label)")
    return label_numbers(labels, num, classes)


def sample_labels(labels: Labels | None, num: int, first: int, classes: Sequence[str]) -> Tensor | None:
    """Labels (num,) of the new images ``first`` and on: those given, one for all, or the classes in turn."""
    turns = (torch.arange(num) + first) % len(classes) if labels is None and classes else labels
    return to_labels(turns, num, classes)


class Given(TypedDict, total=False):
    """What may be said of images beside the images themselves."""

    start: Begin
    """initial state, see :meth:`goalgen.model.Model.start`; unset: the one trained with"""
    names: Sequence[str] | None
    """a name for each, for a start that is a folder paired by name"""
    labels: Labels | None
    """a label for each, of a model that is conditioned on labels: (N,) numbers of its classes, or their names"""


class Asked(Given, total=False):
    """... and whom to tell."""

    each: Callable[[int], object] | None
    """is told how many images are done, now and then"""
    first: int
    """index of the first image: noise depends on (seed, index), so a part can be measured as of the whole"""

"""Images that are in memory already: a tensor or an array, handed over in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from goalgen.config import DataConfig
from goalgen.data.labels import encode_labels
from goalgen.data.provenance import say_repeated
from goalgen.data.sets import ImageSet, Splits, choose
from goalgen.data.sources import finish
from goalgen.errors import GoalgenError

PREFIX = "memory:"
"""How a run names images that it was given; a hash of them follows."""


def from_memory(
    images: Tensor | np.ndarray, config: DataConfig, labels: Sequence[int] | Tensor | np.ndarray | None = None
) -> tuple[Splits, DataConfig]:
    """The three sets of ``images``, held out as from a folder, and ``config`` with their name in the place of a path.

    Args:
        images: integers 0 to 255, (N, C, height, width), (N, height, width, C) or, grey, (N, height, width); C is 1 or 3.
        config: what is held out, ``limit``, ``binarize``; nothing is resized.
        labels: N whole numbers from 0; classes are those that occur.

    Warns:
        UserWarning: test images are among the others.

    Raises:
        GoalgenError: these are no images, they are too few, or there are other labels than one for each.
    """
    found = _in_order(images)
    wanted = (config.channels or found.shape[1], *(config.image_size or found.shape[2:]))
    if tuple(found.shape[1:]) != wanted:
        raise GoalgenError(
            f"images are {tuple(found.shape[1:])}, the settings say {wanted}: resize or convert them first"
        )
    classes, names = None, None
    if labels is not None:
        given = torch.as_tensor(labels)
        if given.shape != (len(found),) or given.is_floating_point() or (len(given) and int(given.min()) < 0):
            raise GoalgenError(f"labels must be {len(found)} whole numbers from 0, one for each image")
        encoded, names = encode_labels({"train": given.tolist()}, None, "images in memory")
        classes = encoded["train"]
    whole = ImageSet(found, 256, classes)
    roles = choose({"train": torch.arange(len(whole))}, config, "the tensor")
    sets = {role: whole.subset(chosen) for role, (_, chosen) in roles.items()}
    splits = finish(sets, config, names, "images in memory")
    say_repeated(splits)
    return splits, replace(config, data=PREFIX + ImageSet(found, 256).fingerprint())


def _in_order(images: Tensor | np.ndarray) -> Tensor:
    """As (N, C, height, width) uint8."""
    if not isinstance(images, Tensor | np.ndarray):
        raise GoalgenError(
            f"images must be a tensor or an array, not {type(images).__name__}; a folder goes into data="
        )
    size, kind = tuple(images.shape), str(images.dtype).removeprefix("torch.")
    try:
        found = torch.as_tensor(images)
    except TypeError:
        raise GoalgenError(f"images must hold integers 0 to 255, not {kind}") from None
    if found.ndim == 3:
        found = found.unsqueeze(1)
    elif found.ndim == 4 and size[1] not in (1, 3) and size[3] in (1, 3):
        found = found.permute(0, 3, 1, 2)
    if found.ndim != 4 or found.shape[1] not in (1, 3) or not found.numel():
        raise GoalgenError(
            f"images must be (N, C, height, width) with 1 or 3 channels, or (N, height, width), not {size}"
        )
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise GoalgenError(f"images must hold integers 0 to 255, not {kind}: scale and round them first")
    if int(found.min()) < 0 or int(found.max()) > 255:
        raise GoalgenError(f"images must hold integers 0 to 255; found {int(found.min())} to {int(found.max())}")
    return found.to(torch.uint8).contiguous()

"""Conversions between grey levels, [-1, 1] and bytes.

Images are uint8 tensors (N, C, height, width) that hold grey levels 0..levels-1; networks see float32 in [-1, 1].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from goalgen.errors import GoalgenError


class Share(NamedTuple):
    """The images that one of several processes has of a batch. Numbers are drawn for the whole batch, whoever has which."""

    total: int
    rows: slice


def _check_levels(levels: int) -> None:
    if not 2 <= levels <= 256:
        raise GoalgenError(f"levels must be 2 to 256, not {levels}")


def to_unit(images: Tensor, levels: int) -> Tensor:
    """Return grey levels 0..levels-1 (uint8, any shape) as float32 in [-1, 1]."""
    _check_levels(levels)
    return images.to(torch.float32) / (levels - 1) * 2 - 1


def from_unit(x: Tensor, levels: int) -> Tensor:
    """Return the nearest grey levels 0..levels-1 (uint8) of values in [-1, 1]; values outside are clamped."""
    _check_levels(levels)
    return ((x.float() + 1) / 2 * (levels - 1)).round().clamp(0, levels - 1).to(torch.uint8)


def to_bytes(images: Tensor, levels: int) -> Tensor:
    """Return grey levels 0..levels-1 (uint8, any shape) stretched to 0..255 (uint8), for pictures."""
    _check_levels(levels)
    return (images.to(torch.float32) * (255 / (levels - 1))).round().clamp(0, 255).to(torch.uint8)


def binarize_images(images: Tensor, levels: int, generator: torch.Generator, share: Share | None = None) -> Tensor:
    """Return 0 or 1 (uint8, same shape) for every pixel: 1 with probability level / (levels - 1)."""
    _check_levels(levels)
    total, rows = share or (len(images), slice(None))
    chance = torch.rand((total, *images.shape[1:]), generator=generator, device=generator.device)[rows]
    # rand is in [0, 1): level 0 is never drawn as 1, the last level always is.
    return (chance.to(images.device) < images.to(torch.float32) / (levels - 1)).to(torch.uint8)


def augment_flip(images: Tensor, generator: torch.Generator, share: Share | None = None) -> Tensor:
    """Return images (N, C, height, width) of which each is mirrored left to right with a chance of one half."""
    total, rows = share or (len(images), slice(None))
    mirrored = torch.rand(total, generator=generator, device=generator.device)[rows].to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def augment_shift(images: Tensor, generator: torch.Generator, pixels: int = 1, share: Share | None = None) -> Tensor:
    """Return every image (N, C, height, width) shifted by its own whole number of pixels.

    Both shifts are uniform in -pixels..pixels; what comes in over the edge repeats the edge.
    """
    n, channels, height, width = images.shape
    total, mine = share or (n, slice(None))
    drawn = torch.randint(-pixels, pixels + 1, (total, 2), generator=generator, device=generator.device)
    shift = drawn[mine].to(images.device)
    rows = (torch.arange(height, device=images.device) - shift[:, :1]).clamp(0, height - 1)  # (N, height)
    columns = (torch.arange(width, device=images.device) - shift[:, 1:]).clamp(0, width - 1)  # (N, width)
    image = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]

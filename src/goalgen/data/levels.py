"""Conversions between grey levels, [-1, 1] and bytes.

Images are uint8 tensors (N, C, height, width) that hold grey levels 0..levels-1; networks see float32 in [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from goalgen.errors import GoalgenError


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


def binarize_images(images: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """Return 0 or 1 (uint8, same shape) for every pixel: 1 with probability level / (levels - 1)."""
    _check_levels(levels)
    chance = torch.rand(images.shape, generator=generator, device=generator.device)
    # rand is in [0, 1): level 0 is never drawn as 1, the last level always is.
    return (chance.to(images.device) < images.to(torch.float32) / (levels - 1)).to(torch.uint8)


def augment_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (N, C, height, width) of which each is mirrored left to right with a chance of one half."""
    mirrored = torch.rand(len(images), generator=generator, device=generator.device).to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def augment_shift(images: Tensor, generator: torch.Generator, pixels: int = 1) -> Tensor:
    """Return every image (N, C, height, width) shifted by its own whole number of pixels.

    Both shifts are uniform in -pixels..pixels; what comes in over the edge repeats the edge.
    """
    n, channels, height, width = images.shape
    shift = torch.randint(-pixels, pixels + 1, (n, 2), generator=generator, device=generator.device).to(images.device)
    rows = (torch.arange(height, device=images.device) - shift[:, :1]).clamp(0, height - 1)  # (N, height)
    columns = (torch.arange(width, device=images.device) - shift[:, 1:]).clamp(0, width - 1)  # (N, width)
    image = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]

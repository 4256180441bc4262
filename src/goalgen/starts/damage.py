"""Functions of the goal to start from, by which the S-agent becomes a restorer.

They take and return float32 images (B, C, height, width) in [-1, 1].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def grey(goals: Tensor) -> Tensor:
    """Return the luma (ITU-R 601) of RGB images (B, 3, height, width), repeated on the three channels."""
    weights = goals.new_tensor([0.299, 0.587, 0.114])
    return (goals * weights[:, None, None]).sum(1, keepdim=True).expand_as(goals).contiguous()


def blur(goals: Tensor, sigma: float) -> Tensor:
    """Return images convolved with a Gaussian of ``sigma`` pixels; beyond the edge the image repeats its edge."""
    channels = goals.shape[1]
    radius = math.ceil(3 * sigma)
    offset = torch.arange(-radius, radius + 1, dtype=torch.float32, device=goals.device)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(channels, 1, 1, -1)
    padded = functional.pad(goals, (radius, radius, radius, radius), mode="replicate")
    across = functional.conv2d(padded, kernel, groups=channels)
    return functional.conv2d(across, kernel.transpose(2, 3), groups=channels)


def downsample(goals: Tensor, factor: float) -> Tensor:
    """Return images averaged over blocks of about ``factor`` pixels and enlarged again by repetition."""
    height, width = goals.shape[-2:]
    small = (max(1, round(height / factor)), max(1, round(width / factor)))
    averaged = functional.interpolate(goals, size=small, mode="area")
    return functional.interpolate(averaged, size=(height, width), mode="nearest")


def mask(goals: Tensor, fraction: float) -> Tensor:
    """Return images with a centred rectangle of about ``fraction`` of their area set to mid-grey (0)."""
    height, width = goals.shape[-2:]
    rows, columns = max(1, round(height * math.sqrt(fraction))), max(1, round(width * math.sqrt(fraction)))
    top, left = (height - rows) // 2, (width - columns) // 2
    masked = goals.clone()
    masked[..., top : top + rows, left : left + columns] = 0
    return masked


def edges(goals: Tensor) -> Tensor:
    """Return the magnitude of the Sobel gradient of each channel: -1 where flat, 1 at a step from black to white."""
    channels = goals.shape[1]
    smooth, slope = goals.new_tensor([1.0, 2.0, 1.0]), goals.new_tensor([-1.0, 0.0, 1.0])
    across = torch.outer(smooth, slope).expand(channels, 1, 3, 3)
    padded = functional.pad(goals, (1, 1, 1, 1), mode="replicate")
    gradient_x = functional.conv2d(padded, across, groups=channels)
    gradient_y = functional.conv2d(padded, across.transpose(2, 3), groups=channels)
    # A straight step from -1 to 1 has magnitude (1 + 2 + 1) * 2 = 8; corners exceed it a little.
    return (torch.hypot(gradient_x, gradient_y) / 8).clamp(0, 1) * 2 - 1

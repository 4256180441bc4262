"""What an extractor of features is, and how images reach it: checked, averaged down, in [-1, 1] and in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from goalgen.errors import GoalgenError

BATCH = 256
LARGEST_SIDE = 32
"""Larger images are averaged down to this many pixels a side before the classifier or the components see them."""
SMALLEST_SIDE = 4


def check_images(images: Tensor, levels: int, least: int = 1, shape: tuple[int, ...] | None = None) -> None:
    """Check that images are uint8 (N, C, height, width) of grey levels 0..levels-1, and of a shape (C, height, width).

    Raises:
        GoalgenError: they are not, or a side has fewer than ``least`` pixels.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape:
        found = f"{images.dtype} {tuple(images.shape)}"
        raise GoalgenError(f"images must be uint8 of shape (N, C, height, width), none of them 0, not {found}")
    if not 2 <= levels <= 256:
        raise GoalgenError(f"the number of grey levels must be 2..256, not {levels}")
    if min(images.shape[2:]) < least:
        size = f"{images.shape[2]}x{images.shape[3]}"
        raise GoalgenError(f"classifier features need images of at least {least}x{least}, not {size}; use pixel-pca")
    if shape is not None and tuple(images.shape[1:]) != shape:
        raise GoalgenError(f"these features are of images {shape}, not {tuple(images.shape[1:])}; resize the images")
    if int(images.max()) >= levels:
        raise GoalgenError(f"images of {levels} grey levels hold 0..{levels - 1}, found {int(images.max())}")


def network_input(images: Tensor, levels: int) -> Tensor:
    """Return grey levels 0..levels-1 as float32 in [-1, 1]."""
    return images.float() / (levels - 1) * 2 - 1


def small_size(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) to which images of another are averaged down."""
    factor = max(1.0, max(height, width) / LARGEST_SIDE)
    return tuple(max(min(side, SMALLEST_SIDE), round(side / factor)) for side in (height, width))  # type: ignore[return-value]


def shrink(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images averaged down to ``size`` (height, width)."""
    return x if tuple(x.shape[-2:]) == size else F.adaptive_avg_pool2d(x, size)


class Features(ABC):
    """A feature extractor.

    Attributes:
        name: what to print beside a number, for instance "classifier-64 (goalgen, digits)".
        key: identifies the extractor and its weights, for caches.
        shape: (C, height, width) of the images it takes; None: any.
    """

    name: str
    key: str
    shape: tuple[int, ...] | None = None
    batch_size = BATCH

    @torch.no_grad()
    def __call__(self, images: Tensor, levels: int) -> Tensor:
        """Return features (N, D) float32 of uint8 images (N, C, height, width).

        Raises:
            GoalgenError: images that the extractor does not take, or levels out of range.
        """
        check_images(images, levels, shape=self.shape)
        return torch.cat([self.extract(batch.cpu(), levels) for batch in images.split(self.batch_size)])

    @abstractmethod
    def extract(self, images: Tensor, levels: int) -> Tensor:
        """Return the features of one batch of images, which have been checked."""

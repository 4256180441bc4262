"""The order in which goals are visited, a function of (seed, step): a resumed run needs no replay."""

from __future__ import annotations

import torch
from torch import Tensor

from goalgen import rng
from goalgen.errors import GoalgenError


class BatchOrder:
    """Batches drawn from an endless row of epochs, each an independent random permutation of the images.

    Batches run across the ends of epochs, so that every batch is full and no image is dropped.
    Any step can be asked for, in any order.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        """Order ``size`` images in batches of ``batch_size`` (which may be larger than ``size``).

        Raises:
            GoalgenError: either number is less than 1.
        """
        if size < 1:
            raise GoalgenError(f"there must be at least 1 image to make batches of, not {size}")
        if batch_size < 1:
            raise GoalgenError(f"the batch size must be at least 1, not {batch_size}")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self._permutations: dict[int, Tensor] = {}

    def epoch(self, step: int) -> int:
        """Return the epoch, from 0, in which the batch of ``step`` begins.

        Raises:
            GoalgenError: ``step`` is negative.
        """
        if step < 0:
            raise GoalgenError(f"steps are counted from 0; there is no step {step}")
        return step * self.batch_size // self.size

    def indices(self, step: int) -> Tensor:
        """Return the images of the batch of ``step`` (from 0): (batch_size,) int64 in 0..size-1.

        Raises:
            GoalgenError: ``step`` is negative.
        """
        first = self.epoch(step)
        begin = step * self.batch_size - first * self.size
        last = first + (begin + self.batch_size - 1) // self.size
        # Only the epochs of this batch are kept: steps are nearly always asked for in order.
        self._permutations = {e: self._permutation(e) for e in range(first, last + 1)}
        return torch.cat(list(self._permutations.values()))[begin : begin + self.batch_size]

    def _permutation(self, epoch: int) -> Tensor:
        if epoch in self._permutations:
            return self._permutations[epoch]
        return torch.randperm(self.size, generator=rng.generator(self.seed, "data order", epoch))


def augment_shift(images: Tensor, generator: torch.Generator, pixels: int = 1) -> Tensor:
    """Return every image (N, C, height, width) shifted by its own whole number of pixels.

    Both shifts are uniform in -pixels..pixels; what comes in over the edge repeats the edge.

    Raises:
        GoalgenError: ``images`` has another number of dimensions, or ``pixels`` is negative.
    """
    if images.ndim != 4:
        raise GoalgenError(f"images to shift must be (N, C, height, width), not {tuple(images.shape)}")
    if pixels < 0:
        raise GoalgenError(f"pixels must be 0 or more, not {pixels}")
    n, channels, height, width = images.shape
    shift = torch.randint(-pixels, pixels + 1, (n, 2), generator=generator, device=generator.device).to(images.device)
    rows = (torch.arange(height, device=images.device) - shift[:, :1]).clamp(0, height - 1)  # (N, height)
    columns = (torch.arange(width, device=images.device) - shift[:, 1:]).clamp(0, width - 1)  # (N, width)
    image = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]

"""The small convolutional classifier whose penultimate units are features, and its training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goalgen.metrics.images import BATCH, network_input, shrink, small_size
from goalgen.metrics.statistics import FeatureMoments
from goalgen.rng import generator

log = logging.getLogger(__name__)

DIMENSION = 64
"""Features of the classifier, and the most principal components of pixels."""
TRAINING_IMAGES = 300_000
"""The classifier sees about this many images in all, in 1 to 30 epochs."""


class Classifier(nn.Module):
    """Three convolutions, 64 features, one linear layer to the classes."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.size = small_size(height, width)
        stride = 2 if min(self.size) >= 16 else 1  # 8x8 images keep their resolution one layer longer
        positions = math.prod(-(-side // (2 * stride)) for side in self.size)
        with torch.random.fork_rng(devices=[]):
            self.conv1 = nn.Conv2d(channels, 32, 5, stride, padding=2)
            self.conv2 = nn.Conv2d(32, 64, 3, 2, padding=1)
            self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
            self.hidden = nn.Linear(64 * positions, DIMENSION)
            self.out = nn.Linear(DIMENSION, classes)
        self.register_buffer("mean", torch.zeros(DIMENSION))
        self.register_buffer("std", torch.ones(DIMENSION))
        self.mean: Tensor
        self.std: Tensor

    def initialise(self, rng: torch.Generator) -> None:
        for layer in (self.conv1, self.conv2, self.conv3, self.hidden, self.out):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=rng)
            nn.init.constant_(layer.get_parameter("bias"), 0.0)

    def raw(self, x: Tensor, drop: Callable[[Tensor, float], Tensor] | None = None) -> Tensor:
        """Return the penultimate units (N, 64) of x (N, C, height, width) in [-1, 1], before their nonlinearity."""
        x = shrink(x, self.size)
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = F.relu(self.conv3(x)).flatten(1)
        return self.hidden(drop(x, 0.1) if drop else x)

    def features(self, x: Tensor) -> Tensor:
        return (self.raw(x) - self.mean) / self.std

    def forward(self, x: Tensor, drop: Callable[[Tensor, float], Tensor]) -> Tensor:
        return self.out(drop(F.relu(self.raw(x, drop)), 0.1))


def train_classifier(network: Classifier, images: Tensor, targets: Tensor, levels: int) -> dict[str, Tensor]:
    """Fit the network to (N, C, height, width) images and (N,) targets 0..K-1, then fix its standardisation.

    All randomness comes from one generator, so the caller's global generators stay as they are.
    Returns the state of the network.
    """
    log.info("training the feature classifier on %d images, once for this data set", len(images))
    rng = generator(0, "feature classifier")
    batch = min(128 if len(images) > 10_000 else 64, len(images))
    epochs = min(30, max(1, round(TRAINING_IMAGES / len(images))))
    steps = epochs * (len(images) // batch)

    def drop(x: Tensor, probability: float) -> Tensor:
        return x * torch.empty_like(x).bernoulli_(1 - probability, generator=rng) / (1 - probability)

    # The caller may be inside no_grad or inference_mode.
    with torch.inference_mode(False), torch.enable_grad():
        network.initialise(rng)
        optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps, pct_start=0.2)
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=rng)
            for rows in order[: len(images) // batch * batch].split(batch):
                x = _augment(network_input(images[rows], levels), rng)
                loss = F.cross_entropy(network(x, drop), targets[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    moments = FeatureMoments(DIMENSION)
    for chunk in images.split(BATCH):
        with torch.no_grad():
            moments.update(network.raw(network_input(chunk, levels)), "classifier features")
    network.mean.copy_(moments.mean)
    deviation = moments.covariance.diagonal().sqrt()
    network.std.copy_(torch.where(deviation > 1e-6, deviation, 1.0))  # a unit that never varies stays at 0
    return network.state_dict()


def _augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Return the batch shifted by up to one pixel in each direction (edges repeated), with a little noise."""
    height, width = x.shape[-2:]
    top, left = torch.randint(0, 3, (2,), generator=rng).tolist()
    shifted = F.pad(x, (1, 1, 1, 1), mode="replicate")[..., top : top + height, left : left + width]
    return shifted + 0.05 * torch.randn(shifted.shape, generator=rng)

"""What images are compared by: a classifier's features, principal components of pixels, or Inception's.

What is expensive is cached (:mod:`goalgen.cache`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goalgen.cache import cache_key, load_or_make
from goalgen.errors import GoalgenError
from goalgen.metrics.images import BATCH, SMALLEST_SIDE, Features, check_images, network_input, shrink, small_size
from goalgen.metrics.inception import InceptionFeatures
from goalgen.metrics.statistics import FeatureMoments
from goalgen.rng import generator

log = logging.getLogger(__name__)

DIMENSION = 64
"""Features of the classifier, and the most principal components of pixels."""
TRAINING_IMAGES = 300_000
"""The classifier sees about this many images in all, in 1 to 30 epochs."""
CLASSIFIER_VERSION = 1
"""Part of the cache key: raise it when a change of the classifier or its training gives other weights."""
COMPONENTS_VERSION = 1
COMPONENTS_IMAGES = 10_000
"""Principal components are fitted to at most this many images."""


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

    def raw(self, x: Tensor, drop: Callable[[Tensor, float], Tensor] | None = None) -> Tensor:
        """Return the penultimate units (N, 64) of x (N, C, height, width) in [-1, 1], before their nonlinearity."""
        x = shrink(x, self.size)
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = F.relu(self.conv3(x)).flatten(1)
        return self.hidden(drop(x, 0.1) if drop else x)

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
        for layer in (network.conv1, network.conv2, network.conv3, network.hidden, network.out):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=rng)
            nn.init.constant_(layer.get_parameter("bias"), 0.0)
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


class ClassifierFeatures(Features):
    """The 64 penultimate units of a small convolutional classifier, standardised on its training images.

    The classifier is trained when the cache does not have it: seconds for 1,400 images of 8x8, about a
    minute for 60,000 of 28x28 on two cores. The same thread count and PyTorch give the same weights.
    """

    def __init__(self, images: Tensor, labels: Tensor, levels: int, data: str, fingerprint: str) -> None:
        """Load the classifier of these training images from the cache, or train it and store it there.

        Args:
            images: training images, (N, C, height, width) uint8, height and width at least 4.
            labels: their classes, (N,) integers.
            levels: number of grey levels.
            data: name of the data set, for :attr:`name`.
            fingerprint: identifies images and labels.

        Raises:
            GoalgenError: images of the wrong type, shape or range, or fewer than two classes.
        """
        check_images(images, levels, SMALLEST_SIDE)
        classes, targets = torch.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise GoalgenError("classifier features need at least two classes; use pixel-pca")
        self.shape = tuple(images.shape[1:])
        with torch.inference_mode(False):  # parameters made inside could not be trained
            self._network = network = Classifier(self.shape, len(classes))
        self.name = f"classifier-{DIMENSION} (goalgen, {data})"
        # The 0 is the seed of the training.
        parts = (CLASSIFIER_VERSION, 0, levels, len(images), self.shape, classes.tolist(), fingerprint)
        self.key = cache_key("classifier", *parts)
        state = load_or_make("classifier", self.key, lambda: train_classifier(network, images, targets, levels))
        network.load_state_dict(state)
        network.eval().requires_grad_(False)

    def extract(self, images: Tensor, levels: int) -> Tensor:
        return (self._network.raw(network_input(images, levels)) - self._network.mean) / self._network.std


class PixelFeatures(Features):
    """The first principal components (at most 64) of the training images' pixels, for data without labels.

    Pixels count in [-1, 1]. Components see position and colour, not what a picture shows: a weaker
    judge than a classifier, which the name says.
    """

    def __init__(self, images: Tensor, levels: int, data: str, fingerprint: str) -> None:
        """Load the components of these training images from the cache, or compute and store them.

        The arguments are those of :class:`ClassifierFeatures`.

        Raises:
            GoalgenError: images of the wrong type, shape or range, or fewer than two.
        """
        check_images(images, levels)
        if len(images) < 2:
            raise GoalgenError("principal components need at least 2 training images; give more images")
        self.shape = tuple(images.shape[1:])
        count = min(DIMENSION, self.shape[0] * math.prod(small_size(*self.shape[1:])))
        self.name = f"pixel-pca-{count} (goalgen, {data})"
        self.key = cache_key("pixel-pca", COMPONENTS_VERSION, levels, len(images), self.shape, fingerprint)
        state = load_or_make("pixel-pca", self.key, lambda: _principal_components(images, levels, count))
        self._mean, self._components = state["mean"], state["components"]

    def extract(self, images: Tensor, levels: int) -> Tensor:
        return (_small_pixels(network_input(images, levels)) - self._mean) @ self._components


def make_features(
    kind: str, images: Tensor, labels: Tensor | None, levels: int, *, data: str, fingerprint: str
) -> Features:
    """Return the extractor called ``kind`` for a data set.

    Args:
        kind: "classifier", "pixel-pca" or "inception"; "auto" is the classifier where there are labels
            of two classes or more, and pixel-pca otherwise. It never downloads anything.
        images: training images, (N, C, height, width) uint8.
        labels: their classes, (N,), or None.
        levels: number of grey levels.
        data, fingerprint: see :class:`ClassifierFeatures`.

    Raises:
        GoalgenError: an unknown kind, a classifier without labels, or what the extractor refuses.
    """
    if kind == "auto":
        usable = labels is not None and min(images.shape[-2:]) >= SMALLEST_SIDE and len(torch.unique(labels)) > 1
        kind = "classifier" if usable else "pixel-pca"
    if kind == "classifier":
        if labels is None:
            raise GoalgenError("classifier features need labels and these data have none; use pixel-pca")
        return ClassifierFeatures(images, labels, levels, data, fingerprint)
    if kind == "pixel-pca":
        return PixelFeatures(images, levels, data, fingerprint)
    if kind == "inception":
        return InceptionFeatures()
    raise GoalgenError(f"no features are called {kind!r}; there are: auto, classifier, pixel-pca, inception")


def _principal_components(images: Tensor, levels: int, count: int) -> dict[str, Tensor]:
    """Return the mean (pixels,) and the first components (pixels, count) of a fixed choice of the images."""
    chosen = torch.randperm(len(images), generator=generator(0, "principal components"))[:COMPONENTS_IMAGES]
    moments = FeatureMoments(_small_pixels(images[:1].float()).shape[1])
    for rows in chosen.split(4 * BATCH):
        moments.update(_small_pixels(network_input(images[rows], levels)), "pixels")
    components = torch.linalg.eigh(moments.covariance).eigenvectors.flip(1)[:, :count]
    # An eigenvector's sign is arbitrary; fixed, another machine finds the same features.
    largest = components.gather(0, components.abs().argmax(0, keepdim=True))
    return {"mean": moments.mean.float(), "components": (components * largest.sign()).float()}


def _small_pixels(x: Tensor) -> Tensor:
    """Return the pixels (N, C * height * width) of images made no larger than 32x32."""
    return shrink(x, small_size(x.shape[2], x.shape[3])).flatten(1)

"""What images are compared by: a classifier's features, principal components of pixels, or Inception's.

Every extractor has a ``name``, which belongs beside each number measured with it, and maps uint8
images (N, C, height, width) of grey levels 0..levels-1 to features (N, D) float32, in batches of fixed
size. What is expensive is cached (:mod:`goalgen.cache`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from goalgen.cache import cache_key, load_or_make
from goalgen.errors import GoalgenError
from goalgen.metrics.classifier import DIMENSION, Classifier, train_classifier
from goalgen.metrics.images import BATCH, SMALLEST_SIDE, check_images, in_batches, network_input, shrink, small_size
from goalgen.metrics.inception import InceptionFeatures
from goalgen.metrics.statistics import FeatureMoments
from goalgen.rng import generator

CLASSIFIER_VERSION = 1
"""Part of the cache key: raise it when a change of the classifier or its training gives other weights."""
COMPONENTS_VERSION = 1
COMPONENTS_IMAGES = 10_000
"""Principal components are fitted to at most this many images."""


class Features(Protocol):
    """A feature extractor.

    Attributes:
        name: what to print beside a number, for instance "classifier-64 (goalgen, digits)".
        key: identifies the extractor and its weights, for caches.
    """

    name: str
    key: str

    def __call__(self, images: Tensor, levels: int) -> Tensor:
        """Return features (N, D) float32 of uint8 images (N, C, height, width).

        Raises:
            GoalgenError: images that the extractor does not take, or levels out of range.
        """


class _FittedFeatures(ABC):
    """Features fitted to training images, of whose shape all others must be."""

    shape: tuple[int, ...]

    def __call__(self, images: Tensor, levels: int) -> Tensor:
        check_images(images, levels, shape=self.shape)
        return in_batches(images, lambda batch: self._extract(network_input(batch, levels)))

    @abstractmethod
    def _extract(self, x: Tensor) -> Tensor:
        """Return the features of images in [-1, 1]."""


class ClassifierFeatures(_FittedFeatures):
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

    def _extract(self, x: Tensor) -> Tensor:
        return self._network.features(x)


class PixelFeatures(_FittedFeatures):
    """The first principal components (at most 64) of the training images' pixels, for data without labels.

    Pixels count in [-1, 1]. Components see position and colour, not what a picture shows: a weaker
    judge than a classifier, which the name says.
    """

    def __init__(self, images: Tensor, levels: int, data: str, fingerprint: str) -> None:
        """Load the components of these training images from the cache, or compute and store them.

        Args:
            images: training images, (N, C, height, width) uint8, N at least 2.
            levels, data, fingerprint: as for :class:`ClassifierFeatures`.

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

    def _extract(self, x: Tensor) -> Tensor:
        return (_small_pixels(x) - self._mean) @ self._components


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

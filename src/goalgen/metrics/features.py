"""What images are compared by: a classifier's features, principal components of pixels, or Inception's.

Every extractor has a ``name``, which belongs beside each number measured with it, and maps uint8
images (N, C, height, width) of grey levels 0..levels-1 to features (N, D) float32, in batches of fixed
size. What is expensive is cached (:mod:`goalgen.cache`).
"""

from __future__ import annotations

import importlib
import io
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goalgen.cache import cache_key, digest, fingerprint_images, load_or_make
from goalgen.errors import GoalgenError
from goalgen.metrics.statistics import FeatureMoments
from goalgen.rng import generator

log = logging.getLogger(__name__)

DIMENSION = 64
"""Features of the classifier, and the most principal components of pixels."""
BATCH = 256
LARGEST_SIDE = 32
"""Larger images are averaged down to this many pixels a side before the classifier or the components see them."""
SMALLEST_SIDE = 4
CLASSIFIER_VERSION = 1
"""Part of the cache key: raise it when a change below gives another classifier."""
COMPONENTS_VERSION = 1
COMPONENTS_IMAGES = 10_000
"""Principal components are fitted to at most this many images."""
TRAINING_IMAGES = 300_000
"""The classifier sees about this many images in all, in 1 to 30 epochs."""


class Features(Protocol):
    """A feature extractor.

    Attributes:
        name: what to print beside a number, for instance "classifier-64 (goalgen, digits)".
        key: identifies the extractor and its weights, for caches.
    """

    name: str
    key: str

    def __call__(self, images: Tensor, levels: int) -> Tensor:
        """Return features (N, D) float32 of uint8 images (N, C, height, width)."""
        ...


# Extractors ----------------------------------------------------------------------------------------


class ClassifierFeatures:
    """The 64 penultimate units of a small convolutional classifier, standardised on its training images.

    The classifier is trained when the cache does not have it: seconds for 1,400 images of 8x8, about a
    minute for 60,000 of 28x28 on two cores. The same seed, thread count and PyTorch give the same weights.

    Attributes:
        classes: the labels it knows, (K,) int64, ascending.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        levels: int,
        *,
        data: str = "data",
        fingerprint: str | None = None,
        seed: int = 0,
        cache: Path | None = None,
    ) -> None:
        """Load the classifier of these training images from the cache, or train it and store it there.

        Args:
            images: training images, (N, C, height, width) uint8, height and width at least 4.
            labels: their classes, (N,) integers.
            levels: number of grey levels.
            data: name of the data set, for :attr:`name`.
            fingerprint: identifies images and labels; computed from them if None.
            seed: seed of the initial weights and of the training.
            cache: folder of the cache; :func:`goalgen.cache.cache_folder` if None.

        Raises:
            GoalgenError: images or labels of the wrong type, shape or range, or fewer than two classes.
        """
        _check_images(images, levels, SMALLEST_SIDE)
        self.classes, targets = _check_labels(labels, len(images))
        self._shape = tuple(images.shape[1:])
        with torch.inference_mode(False):  # parameters made inside could not be trained
            self._network = _Classifier(self._shape, len(self.classes))
        fingerprint = fingerprint or fingerprint_images(images, labels)
        self.name = f"classifier-{DIMENSION} (goalgen, {data})"
        parts = (CLASSIFIER_VERSION, seed, levels, len(images), self._shape, self.classes.tolist(), fingerprint)
        self.key = cache_key("classifier", *parts)

        def train() -> dict[str, Tensor]:
            log.info("training the feature classifier on %d images, once for this data set", len(images))
            _train_classifier(self._network, images, targets, levels, seed)
            return self._network.state_dict()

        state = load_or_make("classifier", self.key, self._network.state_dict(), train, cache)
        self._network.load_state_dict(state)
        self._network.eval().requires_grad_(False)

    def __call__(self, images: Tensor, levels: int) -> Tensor:
        """Return features (N, 64) float32 of uint8 images (N, C, height, width).

        Raises:
            GoalgenError: not uint8 images of the training images' shape, or levels out of range.
        """
        _check_images(images, levels, SMALLEST_SIDE, self._shape)
        return _in_batches(images, lambda batch: self._network.features(_network_input(batch, levels)))

    def predict(self, images: Tensor, levels: int) -> Tensor:
        """Return the most likely class of each image, (N,) int64, for a class histogram.

        Raises:
            GoalgenError: not uint8 images of the training images' shape, or levels out of range.
        """
        _check_images(images, levels, SMALLEST_SIDE, self._shape)
        best = _in_batches(images, lambda batch: self._network(_network_input(batch, levels)).argmax(1))
        return self.classes[best]


class PixelFeatures:
    """The first principal components (at most 64) of the training images' pixels, for data without labels.

    Pixels count in [-1, 1]. Components see position and colour, not what a picture shows: a weaker
    judge than a classifier, which the name says.
    """

    def __init__(
        self,
        images: Tensor,
        levels: int,
        *,
        data: str = "data",
        fingerprint: str | None = None,
        cache: Path | None = None,
    ) -> None:
        """Load the components of these training images from the cache, or compute and store them.

        Args:
            images: training images, (N, C, height, width) uint8, N at least 2.
            levels: number of grey levels.
            data: name of the data set, for :attr:`name`.
            fingerprint: identifies the images; computed from them if None.
            cache: folder of the cache; :func:`goalgen.cache.cache_folder` if None.

        Raises:
            GoalgenError: images of the wrong type, shape or range, or fewer than two.
        """
        _check_images(images, levels)
        if len(images) < 2:
            raise GoalgenError("principal components need at least 2 training images; give more images")
        self._shape = tuple(images.shape[1:])
        pixels = self._shape[0] * math.prod(_small_size(*self._shape[1:]))
        count = min(DIMENSION, pixels)
        self.name = f"pixel-pca-{count} (goalgen, {data})"
        fingerprint = fingerprint or fingerprint_images(images)
        self.key = cache_key("pixel-pca", COMPONENTS_VERSION, levels, len(images), self._shape, fingerprint)
        like = {"mean": torch.empty(pixels), "components": torch.empty(pixels, count)}
        state = load_or_make("pixel-pca", self.key, like, lambda: _principal_components(images, levels, count), cache)
        self._mean, self._components = state["mean"], state["components"]

    def __call__(self, images: Tensor, levels: int) -> Tensor:
        """Return features (N, D) float32 of uint8 images (N, C, height, width), D = min(64, pixels).

        Raises:
            GoalgenError: not uint8 images of the training images' shape, or levels out of range.
        """
        _check_images(images, levels, shape=self._shape)
        return _in_batches(images, lambda batch: (_small_pixels(batch, levels) - self._mean) @ self._components)


class InceptionFeatures:
    """The 2,048 pooled features of the FID's Inception network, through torch-fidelity.

    The only features with which a Frechet distance may be called FID, and comparable with published
    numbers only with the official weights, which :attr:`name` tells apart.
    """

    BATCH = 32

    def __init__(self, weights: Path | str | None = None, device: torch.device | str = "cpu") -> None:
        """Build the network.

        Args:
            weights: state dictionary as .pth or .safetensors; None means $GOALGEN_INCEPTION or, where
                that is not set, the official file, which is downloaded once (91 MB).
            device: where the network runs.

        Raises:
            GoalgenError: torch-fidelity is missing, or the weights are missing, unreadable or do not fit.
        """
        try:
            module: Any = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another PyTorch
            hint = 'pip install "goalgen[inception]"'
            raise GoalgenError(f"Inception features need torch-fidelity and torchvision ({error}); {hint}") from None
        path = weights or os.environ.get("GOALGEN_INCEPTION")
        state = _read_weights(Path(path)) if path else _download_weights(module.URL_INCEPTION_V3)
        # torch-fidelity unpickles the file it is given. It gets our own copy of weights that were read safely.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        try:
            with torch.random.fork_rng(devices=[]):  # the constructor draws initial weights
                network = module.FeatureExtractorInceptionV3("goalgen", ["2048"], feature_extractor_weights_path=buffer)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise GoalgenError(f"{path}: not weights of the FID's Inception network: {str(error)[:200]}") from None
        self._device = torch.device(device)
        self._network = network.to(self._device)
        self.name = f"inception-2048 (weights {Path(path).name})" if path else "inception-2048 (torch-fidelity)"
        self.key = cache_key("inception", digest(state).numpy().tobytes().hex())

    def __call__(self, images: Tensor, levels: int) -> Tensor:
        """Return features (N, 2048) float32 of uint8 images (N, 1 or 3, height, width) of any size.

        Raises:
            GoalgenError: not uint8 images of 1 or 3 channels, or levels out of range.
        """
        _check_images(images, levels)
        if images.shape[1] not in (1, 3):
            raise GoalgenError(f"Inception features need grey or RGB images, not {images.shape[1]} channels")

        def extract(batch: Tensor) -> Tensor:
            bytes_ = (batch.float() * (255 / (levels - 1))).round().to(torch.uint8).expand(-1, 3, -1, -1)
            return self._network(bytes_.to(self._device))[0].cpu()

        return _in_batches(images, extract, self.BATCH)


def make_features(
    kind: str,
    images: Tensor,
    labels: Tensor | None,
    levels: int,
    *,
    data: str = "data",
    fingerprint: str | None = None,
    seed: int = 0,
    cache: Path | None = None,
    weights: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> Features:
    """Return the extractor called ``kind`` for a data set.

    Args:
        kind: "classifier", "pixel-pca" or "inception"; "auto" is the classifier where there are labels
            of two classes or more, and pixel-pca otherwise. It never downloads anything.
        images: training images, (N, C, height, width) uint8.
        labels: their classes, (N,), or None.
        levels: number of grey levels.
        data: name of the data set, for the names of the features.
        fingerprint: identifies images and labels; computed from them if None.
        seed: seed of the classifier.
        cache: folder of the cache; :func:`goalgen.cache.cache_folder` if None.
        weights: Inception's weights, see :class:`InceptionFeatures`.
        device: where Inception runs.

    Raises:
        GoalgenError: an unknown kind, a classifier without labels, or what the extractor refuses.
    """
    if kind == "auto":
        usable = labels is not None and min(images.shape[-2:]) >= SMALLEST_SIDE and len(torch.unique(labels)) > 1
        kind = "classifier" if usable else "pixel-pca"
    if kind == "classifier":
        if labels is None:
            raise GoalgenError("classifier features need labels and these data have none; use pixel-pca")
        return ClassifierFeatures(images, labels, levels, data=data, fingerprint=fingerprint, seed=seed, cache=cache)
    if kind == "pixel-pca":
        return PixelFeatures(images, levels, data=data, fingerprint=fingerprint, cache=cache)
    if kind == "inception":
        return InceptionFeatures(weights, device)
    raise GoalgenError(f"no features are called {kind!r}; there are: auto, classifier, pixel-pca, inception")


def reference_statistics(
    features: Features, images: Tensor, levels: int, fingerprint: str | None = None, cache: Path | None = None
) -> Tensor:
    """Return the features (N, D) float32 of training images, from the cache where it has them.

    Args:
        features: the extractor.
        images: training images, (N, C, height, width) uint8.
        levels: number of grey levels.
        fingerprint: identifies the images; computed from them if None.
        cache: folder of the cache; :func:`goalgen.cache.cache_folder` if None.

    Raises:
        GoalgenError: images that the extractor refuses.
    """
    _check_images(images, levels)
    fingerprint = fingerprint or fingerprint_images(images)
    key = cache_key("reference", features.key, levels, tuple(images.shape), fingerprint)
    like = {"features": torch.empty(len(images), features(images[:1], levels).shape[1])}
    return load_or_make("reference", key, like, lambda: {"features": features(images, levels)}, cache)["features"]


# The classifier ------------------------------------------------------------------------------------


class _Classifier(nn.Module):
    """Three convolutions, 64 features, one linear layer to the classes."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.size = _small_size(height, width)
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
        x = _shrink(x, self.size)
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = F.relu(self.conv3(x)).flatten(1)
        return self.hidden(drop(x, 0.1) if drop else x)

    def features(self, x: Tensor) -> Tensor:
        return (self.raw(x) - self.mean) / self.std

    def forward(self, x: Tensor, drop: Callable[[Tensor, float], Tensor] | None = None) -> Tensor:
        hidden = F.relu(self.raw(x, drop))
        return self.out(drop(hidden, 0.1) if drop else hidden)


def _train_classifier(network: _Classifier, images: Tensor, targets: Tensor, levels: int, seed: int) -> None:
    """Fit the network to (N, C, height, width) images and (N,) targets 0..K-1, then fix its standardisation.

    All randomness comes from one generator, so the caller's global generators stay as they are.
    """
    rng = generator(seed, "feature classifier")
    images, targets = images.cpu(), targets.cpu()
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
                x = _augment(_network_input(images[rows], levels), rng)
                loss = F.cross_entropy(network(x, drop), targets[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    moments = FeatureMoments(DIMENSION)
    for chunk in images.split(BATCH):
        with torch.no_grad():
            moments.update(network.raw(_network_input(chunk, levels)), "classifier features")
    network.mean.copy_(moments.mean)
    deviation = moments.covariance.diagonal().sqrt()
    network.std.copy_(torch.where(deviation > 1e-6, deviation, 1.0))  # a unit that never varies stays at 0


def _augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Return the batch shifted by up to one pixel in each direction (edges repeated), with a little noise."""
    height, width = x.shape[-2:]
    top, left = torch.randint(0, 3, (2,), generator=rng).tolist()
    shifted = F.pad(x, (1, 1, 1, 1), mode="replicate")[..., top : top + height, left : left + width]
    return shifted + 0.05 * torch.randn(shifted.shape, generator=rng)


# Pixels --------------------------------------------------------------------------------------------


def _principal_components(images: Tensor, levels: int, count: int) -> dict[str, Tensor]:
    """Return the mean (pixels,) and the first components (pixels, count) of a fixed choice of the images."""
    chosen = torch.randperm(len(images), generator=generator(0, "principal components"))[:COMPONENTS_IMAGES]
    moments: FeatureMoments | None = None
    for rows in chosen.split(4 * BATCH):
        pixels = _small_pixels(images[rows], levels)
        moments = moments or FeatureMoments(pixels.shape[1])
        moments.update(pixels, "pixels")
    assert moments is not None  # the constructor asks for two images
    components = torch.linalg.eigh(moments.covariance).eigenvectors.flip(1)[:, :count]
    # An eigenvector's sign is arbitrary; fixed, another machine finds the same features.
    largest = components.gather(0, components.abs().argmax(0, keepdim=True))
    return {"mean": moments.mean.float(), "components": (components * largest.sign()).float()}


def _network_input(images: Tensor, levels: int) -> Tensor:
    return images.float() / (levels - 1) * 2 - 1


def _small_size(height: int, width: int) -> tuple[int, int]:
    factor = max(1.0, max(height, width) / LARGEST_SIDE)
    return tuple(max(min(side, SMALLEST_SIDE), round(side / factor)) for side in (height, width))  # type: ignore[return-value]


def _shrink(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if tuple(x.shape[-2:]) == size else F.adaptive_avg_pool2d(x, size)


def _small_pixels(images: Tensor, levels: int) -> Tensor:
    """Return pixels (N, C * height * width) in [-1, 1] of images no larger than 32x32."""
    return _shrink(_network_input(images, levels), _small_size(images.shape[2], images.shape[3])).flatten(1)


def _in_batches(images: Tensor, extract: Callable[[Tensor], Tensor], size: int = BATCH) -> Tensor:
    def batches() -> Iterator[Tensor]:
        for batch in images.split(size):
            yield extract(batch.cpu())

    with torch.no_grad():
        return torch.cat(list(batches()))


# Inception's weights -------------------------------------------------------------------------------


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise GoalgenError(f"{path} does not exist; give the file of Inception's weights") from None
    except Exception as error:  # torch.load raises whatever a damaged file leads it to
        raise GoalgenError(f"{path} cannot be read as weights: {str(error)[:200]}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise GoalgenError(f"{path} holds no state dictionary; give the file of Inception's weights")
    return state


def _download_weights(url: str) -> dict[str, Tensor]:
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        hint = "set GOALGEN_INCEPTION to a copy of the file"
        raise GoalgenError(f"{url} cannot be downloaded ({error}); {hint}") from None


# Validation ----------------------------------------------------------------------------------------


def _check_images(images: Tensor, levels: int, least: int = 1, shape: tuple[int, ...] | None = None) -> None:
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


def _check_labels(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the classes (K,) and, for every image, the position of its class among them (N,)."""
    if labels.ndim != 1 or labels.is_floating_point() or len(labels) != count:
        found = f"{labels.dtype} {tuple(labels.shape)}"
        raise GoalgenError(f"labels must be integers, one for each of {count} images, not {found}")
    classes, targets = torch.unique(labels.cpu().to(torch.int64), return_inverse=True)
    if len(classes) < 2:
        raise GoalgenError("classifier features need at least two classes; use pixel-pca")
    return classes, targets

"""One table of numbers for a set of samples, each beside the same number for held-out images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from goalgen.cache import cache_key, fingerprint_images, load_or_make
from goalgen.errors import GoalgenError
from goalgen.metrics.features import Features, reference_statistics
from goalgen.metrics.statistics import (
    FeatureMoments,
    density_coverage,
    frechet_from_moments,
    kernel_distance,
    kernel_mean,
    nearest_distance,
    precision_recall,
    squared_radii,
)
from goalgen.rng import generator

MANIFOLD_ROWS = 10_000
"""Most rows of either set in what compares all pairs of features."""
LEAST_IMAGES = 6
"""Density and coverage look at five neighbours of each image."""
QUALITY_VERSION = 1
"""Part of the cache key: raise it when a change below gives other numbers."""
BATCH = 1024
"""Images whose features are computed at once."""

METRICS = (
    "frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage", "nearest_train_distance",
)  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """What the training images bring to every comparison: computed once for a data set and an extractor."""

    features: Features
    levels: int
    images: Tensor
    """all training images, (N, C, height, width) uint8"""
    moments: FeatureMoments
    """of the features of all of them"""
    manifold: Tensor
    """features of at most 10,000 of them (a fixed choice), (M, D) float32"""
    radii3: Tensor
    """squared distance to the third nearest other row of the manifold, (M,) float64"""
    radii5: Tensor
    """the same to the fifth"""
    kernel: float
    """mean of the kernel over pairs of the manifold"""
    fingerprint: str | None
    """identifies the training images in the cache; None: nothing is stored"""

    @classmethod
    def of(
        cls,
        images: Tensor,
        levels: int,
        features: Features,
        fingerprint: str | None = None,
        cache: Path | None = None,
    ) -> Reference:
        """Load it from the cache, or compute and store it.

        Args:
            images: all training images, (N, C, height, width) uint8 of grey levels 0..levels-1, N at least 6.
            levels: number of grey levels.
            features: see :func:`goalgen.metrics.make_features`.
            fingerprint: identifies the images; without it nothing is read from the cache or stored there.
            cache: folder of the cache; :func:`goalgen.metrics.cache_folder` if None.

        Raises:
            GoalgenError: fewer than 6 images, or images that the extractor refuses.
        """
        _at_least(images, "training images")
        if fingerprint is None:
            rows = features(images, levels)
        else:
            rows = reference_statistics(features, images, levels, fingerprint, cache)
        manifold = choose(rows, MANIFOLD_ROWS)

        def neighbours() -> dict[str, Tensor]:
            kernel = torch.tensor(kernel_mean(manifold), dtype=torch.float64)
            return {"radii3": squared_radii(manifold, 3), "radii5": squared_radii(manifold, 5), "kernel": kernel}

        if fingerprint is None:
            found = neighbours()
        else:
            key = cache_key("neighbours", QUALITY_VERSION, features.key, levels, tuple(images.shape), fingerprint)
            empty = torch.empty(len(manifold), dtype=torch.float64)
            like = {"radii3": empty, "radii5": empty, "kernel": torch.empty((), dtype=torch.float64)}
            found = load_or_make("neighbours", key, like, neighbours, cache)
        moments = FeatureMoments.of(rows, "training features")
        radii3, radii5, kernel = found["radii3"], found["radii5"], float(found["kernel"])
        return cls(features, levels, images, moments, manifold, radii3, radii5, kernel, fingerprint)

    def measure(self, batches: Iterable[Tensor], count: int) -> dict[str, float]:
        """Compare ``count`` images, uint8 (B, C, height, width) at a time, with the training images.

        Whatever their number, no more than 10,000 of the images and of their features are held.

        Returns:
            A value for every one of :data:`METRICS`.
        """
        moments = FeatureMoments(self.manifold.shape[1])
        images: list[Tensor] = []
        rows: list[Tensor] = []
        seen = 0
        for batch in batches:
            batch = batch[: count - seen]
            found = self.features(batch, self.levels)
            moments.update(found, "samples' features")
            if seen < MANIFOLD_ROWS:  # an empty slice would keep all of its batch in memory
                rows.append(found[: MANIFOLD_ROWS - seen])
                images.append(batch[: MANIFOLD_ROWS - seen])
            seen += len(batch)
            if seen == count:
                break
        few = torch.cat(rows)
        neighbours = precision_recall(self.manifold, few, 3, self.radii3)
        balls = density_coverage(self.manifold, few, 5, self.radii5)
        return {
            "frechet_distance": frechet_from_moments(moments, self.moments),
            # Unbiased, so a part of the training images changes its noise and not its expectation.
            "kernel_distance": kernel_distance(few, self.manifold, self.kernel),
            "precision": neighbours.precision,
            "recall": neighbours.recall,
            "density": balls.density,
            "coverage": balls.coverage,
            "nearest_train_distance": self._pixel_distance(torch.cat(images)),
        }

    def measure_held_out(self, images: Tensor, cache: Path | None = None) -> dict[str, float]:
        """:meth:`measure` of held-out images, from the cache where it has them."""

        def measure() -> dict[str, Tensor]:
            values = self.measure(images.split(BATCH), len(images))
            return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

        if self.fingerprint is None:
            found = measure()
        else:
            parts = (self.features.key, self.levels, tuple(self.images.shape), self.fingerprint)
            key = cache_key("held-out", QUALITY_VERSION, *parts, fingerprint_images(images))
            like = {name: torch.empty((), dtype=torch.float64) for name in METRICS}
            found = load_or_make("held-out", key, like, measure, cache)
        return {name: float(found[name]) for name in METRICS}

    def _pixel_distance(self, images: Tensor) -> float:
        """Mean root mean square pixel difference to the nearest training image, grey levels as 0..1."""
        distance = nearest_distance(images.flatten(1), self.images.flatten(1)).distance.mean()
        return float(distance) / (self.levels - 1) / images[0].numel() ** 0.5


def sample_quality(
    samples: Tensor | Iterable[Tensor],
    train: Tensor,
    held_out: Tensor,
    levels: int,
    features: Features,
    train_fingerprint: str | None = None,
    cache: Path | None = None,
    num_samples: int | None = None,
) -> dict[str, float | str | int]:
    """Measure samples against the training images, and held-out images in the same way as the reference.

    The Frechet distance, precision, recall, density and coverage all depend on the number of images. So
    both sides are cut to the same n = min(number of samples, len(held_out)), and a metric may be compared
    with its ``_reference``. Give as many samples as there are held-out images to use all of both; numbers
    of two models compare only at the same ``num_samples``.

    Args:
        samples: images to judge, (N, C, height, width) uint8 of grey levels 0..levels-1, N at least 6; or
            an iterable of such batches, which are measured and let go.
        train: all training images, likewise. The Frechet and the nearest-image distances use every one,
            the other metrics at most 10,000 (the first of a fixed permutation).
        held_out: images of the same distribution that training did not see, likewise.
        levels: number of grey levels.
        features: see :func:`goalgen.metrics.make_features`.
        train_fingerprint: identifies the training images for the cache of what is computed from them and
            from the held-out images; all is computed anew, and nothing stored, if None.
        cache: folder of the cache; :func:`goalgen.metrics.cache_folder` if None.
        num_samples: how many images an iterable of samples holds in all.

    Returns:
        frechet_distance, kernel_distance (in squared units of the features), precision, recall, density,
        coverage and nearest_train_distance (mean over images of the root mean square pixel difference to
        the nearest training image, grey levels as 0..1; well below its reference it means memorisation).
        Of each the same for held-out images: frechet_reference, kernel_reference, precision_reference
        and so on. Also features (their name), num_samples (n above) and num_reference (training images).

    Raises:
        GoalgenError: a set of fewer than 6 images, of another shape or type, or grey levels out of range.
    """
    count = len(samples) if isinstance(samples, Tensor) else num_samples
    if count is None:
        raise GoalgenError("samples that come in batches need num_samples, their number in all")
    if count < LEAST_IMAGES:
        raise GoalgenError(f"sample quality needs at least {LEAST_IMAGES} samples, not {count}")
    _at_least(held_out, "held-out images")
    _at_least(train, "training images")
    _same_shape(held_out, train, "held-out images")
    n = min(count, len(held_out))
    if isinstance(samples, Tensor):
        _same_shape(samples, train, "samples")
        samples = choose(samples, n).split(BATCH)
    reference = Reference.of(train, levels, features, train_fingerprint, cache)
    mine = reference.measure(samples, n)
    theirs = reference.measure_held_out(choose(held_out, n), cache)
    result: dict[str, float | str | int] = {"features": features.name, "num_samples": n, "num_reference": len(train)}
    result |= mine
    return result | {f"{name.replace('_distance', '')}_reference": theirs[name] for name in METRICS}


def choose(rows: Tensor, count: int) -> Tensor:
    """Return at most ``count`` rows, the first of a permutation that depends on their number alone."""
    # Not simply the first rows: a folder of images is often sorted by class.
    return rows[torch.randperm(len(rows), generator=generator(0, "metric rows"))[:count]]


def _at_least(images: Tensor, name: str) -> None:
    if len(images) < LEAST_IMAGES:
        raise GoalgenError(f"sample quality needs at least {LEAST_IMAGES} {name}, not {len(images)}")


def _same_shape(images: Tensor, train: Tensor, name: str) -> None:
    if images.shape[1:] != train.shape[1:]:
        shapes = f"{tuple(images.shape[1:])} and training images {tuple(train.shape[1:])}"
        raise GoalgenError(f"{name} are {shapes}; give images of one shape")

"""How good samples are: distances to the data, each beside what held-out images score."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from goalgen.errors import GoalgenError
from goalgen.metrics.features import (
    ClassifierFeatures,
    Features,
    InceptionFeatures,
    PixelFeatures,
    cache_folder,
    fingerprint_images,
    make_features,
    reference_statistics,
)
from goalgen.metrics.statistics import (
    DensityCoverage,
    FeatureMoments,
    Nearest,
    PrecisionRecall,
    class_histogram,
    density_coverage,
    frechet_distance,
    frechet_from_moments,
    kernel_distance,
    nearest_distance,
    precision_recall,
)
from goalgen.rng import generator

__all__ = [
    "ClassifierFeatures",
    "DensityCoverage",
    "FeatureMoments",
    "Features",
    "InceptionFeatures",
    "Nearest",
    "PixelFeatures",
    "PrecisionRecall",
    "cache_folder",
    "class_histogram",
    "density_coverage",
    "fingerprint_images",
    "frechet_distance",
    "frechet_from_moments",
    "kernel_distance",
    "make_features",
    "nearest_distance",
    "precision_recall",
    "reference_statistics",
    "sample_quality",
]

MANIFOLD_ROWS = 10_000
"""Most rows of either set in what compares all pairs of features."""
LEAST_IMAGES = 6
"""Density and coverage look at five neighbours of each image."""


def sample_quality(
    samples: Tensor,
    train: Tensor,
    held_out: Tensor,
    levels: int,
    features: Features,
    train_fingerprint: str | None = None,
    cache: Path | None = None,
) -> dict[str, float | str | int]:
    """Measure samples against the training images, and held-out images in the same way as the reference.

    The Frechet distance, precision, recall, density and coverage all depend on the number of images. So
    both sides are cut to the same n = min(len(samples), len(held_out)), chosen by a fixed permutation,
    and a metric may be compared with its ``_reference``. Give as many samples as there are held-out
    images to use all of both; numbers of two models compare only at the same ``num_samples``.

    Args:
        samples: images to judge, (N, C, height, width) uint8 of grey levels 0..levels-1, N at least 6.
        train: all training images, likewise. The Frechet and the nearest-image distances use every one,
            the other metrics at most 10,000 (the first of a fixed permutation).
        held_out: images of the same distribution that training did not see, likewise.
        levels: number of grey levels.
        features: see :func:`make_features`.
        train_fingerprint: identifies the training images for the cache of their features; the features
            are computed anew, and not stored, if None.
        cache: folder of the cache; :func:`cache_folder` if None.

    Returns:
        frechet_distance, kernel_distance (in squared units of the features), precision, recall, density,
        coverage and nearest_train_distance (mean over images of the root mean square pixel difference to
        the nearest training image, grey levels as 0..1; well below its reference it means memorisation).
        Of each the same for held-out images: frechet_reference, kernel_reference, precision_reference
        and so on. Also features (their name), num_samples (n above) and num_reference (training images).

    Raises:
        GoalgenError: a set of fewer than 6 images, of another shape or type, or grey levels out of range.
    """
    for images, name in ((samples, "samples"), (train, "training images"), (held_out, "held-out images")):
        if len(images) < LEAST_IMAGES:
            raise GoalgenError(f"sample quality needs at least {LEAST_IMAGES} {name}, not {len(images)}")
        if images.shape[1:] != train.shape[1:]:
            shapes = f"{tuple(images.shape[1:])} and training images {tuple(train.shape[1:])}"
            raise GoalgenError(f"{name} are {shapes}; give images of one shape")
    n = min(len(samples), len(held_out))
    sides = {"": _choose(samples, n), "_reference": _choose(held_out, n)}
    if train_fingerprint is None:
        train_features = features(train, levels)
    else:
        train_features = reference_statistics(features, train, levels, train_fingerprint, cache)
    train_moments = FeatureMoments.of(train_features, "training features")
    manifold = _choose(train_features, MANIFOLD_ROWS)

    result: dict[str, float | str | int] = {"features": features.name, "num_samples": n, "num_reference": len(train)}
    for side, images in sides.items():
        seen = features(images, levels)
        moments = FeatureMoments.of(seen, "samples' features")
        few = seen[:MANIFOLD_ROWS]
        neighbours, balls = precision_recall(manifold, few), density_coverage(manifold, few)
        result[f"frechet{side or '_distance'}"] = frechet_from_moments(moments, train_moments)
        # Unbiased, so a part of the training images changes its noise and not its expectation.
        result[f"kernel{side or '_distance'}"] = kernel_distance(few, manifold)
        result[f"precision{side}"] = neighbours.precision
        result[f"recall{side}"] = neighbours.recall
        result[f"density{side}"] = balls.density
        result[f"coverage{side}"] = balls.coverage
        result[f"nearest_train{side or '_distance'}"] = _pixel_distance(images[:MANIFOLD_ROWS], train, levels)
    return result


def _choose(rows: Tensor, count: int) -> Tensor:
    """Return at most ``count`` rows, the first of a permutation that depends on their number alone."""
    # Not simply the first rows: a folder of images is often sorted by class.
    return rows[torch.randperm(len(rows), generator=generator(0, "metric rows"))[:count]]


def _pixel_distance(images: Tensor, train: Tensor, levels: int) -> float:
    """Return the mean root mean square pixel difference to the nearest training image, grey levels as 0..1."""
    distance = nearest_distance(images.flatten(1), train.flatten(1)).distance.mean()
    return float(distance) / (levels - 1) / images[0].numel() ** 0.5

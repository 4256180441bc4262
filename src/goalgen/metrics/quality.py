"""One table of numbers for a set of samples, each beside the same number for held-out images."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from goalgen.cache import cache_key, fingerprint, load_or_make
from goalgen.errors import GoalgenError
from goalgen.metrics.images import Features
from goalgen.metrics.statistics import (
    FeatureMoments,
    density_coverage,
    frechet_distance,
    kernel_distance,
    kernel_mean,
    nearest_rows,
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
RESIDENT = 2**33
"""Bytes of training images that are moved to the device at once, rather than in pieces again and again."""
BATCH = 1024
"""Images whose features are computed at once."""


class Reference:
    """What the training images bring to every comparison: computed once for a data set and an extractor.

    Attributes:
        moments: of the features of all training images.
        manifold: features of at most 10,000 of them (a fixed choice), (M, D) float32.
        radii3: squared distance to the third nearest other row of the manifold, (M,) float64.
        radii5: the same to the fifth.
        kernel: mean of the kernel over pairs of the manifold.
    """

    def __init__(
        self, images: Tensor, levels: int, features: Features, fingerprint: str, device: str | torch.device = "cpu"
    ) -> None:
        """Load it from the cache, or compute and store it; the arguments are those of :func:`sample_quality`."""
        self.features, self.levels, self.images, self.device = features, levels, images, device
        self.depends_on = (features.key, levels, tuple(images.shape), fingerprint)
        key = cache_key("reference", *self.depends_on)
        rows = load_or_make("reference", key, lambda: {"features": features(images, levels)})["features"]
        self.moments = FeatureMoments.of(rows, "training features")
        self.manifold = manifold = choose(rows, MANIFOLD_ROWS).to(device)

        def neighbours() -> dict[str, Tensor]:
            kernel = torch.tensor(float(kernel_mean(manifold)), dtype=torch.float64)
            return {
                "radii3": squared_radii(manifold, 3).cpu(),
                "radii5": squared_radii(manifold, 5).cpu(),
                "kernel": kernel,
            }

        found = self._load_or_make("neighbours", neighbours)
        self.radii3, self.radii5, self.kernel = (
            found["radii3"].to(device),
            found["radii5"].to(device),
            float(found["kernel"]),
        )

    def _load_or_make(self, kind: str, make: Callable[[], dict[str, Tensor]], *more: str) -> dict[str, Tensor]:
        return load_or_make(kind, cache_key(kind, QUALITY_VERSION, *self.depends_on, *more), make)

    def measure(self, batches: Iterable[Tensor], count: int) -> dict[str, float]:
        """Compare ``count`` images, uint8 (B, C, height, width) at a time, with the training images.

        Whatever their number, no more than 10,000 of the images and of their features are held.
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
        if seen < count:
            raise GoalgenError(f"{count} samples were to come, and only {seen} did; give as many as num_samples says")
        few, pixels = torch.cat(rows).to(self.device), torch.cat(images).flatten(1).to(self.device)
        precision, recall = precision_recall(self.manifold, few, 3, self.radii3)
        density, coverage = density_coverage(self.manifold, few, 5, self.radii5)
        train = self.images.flatten(1)
        train = train.to(self.device) if train.numel() <= RESIDENT else train
        nearest = float(nearest_rows(pixels, train)[0].mean())
        return {
            "frechet_distance": frechet_distance(moments, self.moments),
            # Unbiased, so a part of the training images changes its noise and not its expectation.
            "kernel_distance": kernel_distance(few, self.manifold, self.kernel),
            "precision": precision,
            "recall": recall,
            "density": density,
            "coverage": coverage,
            # Root mean square over pixels, grey levels as 0..1.
            "nearest_train_distance": nearest / (self.levels - 1) / pixels.shape[1] ** 0.5,
        }

    def measure_held_out(self, images: Tensor) -> dict[str, float]:
        """:meth:`measure` of held-out images, from the cache where it has them."""

        def measure() -> dict[str, Tensor]:
            values = self.measure(images.split(BATCH), len(images))
            return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

        found = self._load_or_make("held-out", measure, fingerprint({"images": images}))
        return {name: float(value) for name, value in found.items()}


def sample_quality(
    samples: Iterable[Tensor],
    train: Tensor,
    held_out: Tensor,
    levels: int,
    features: Features,
    *,
    train_fingerprint: str,
    num_samples: int,
    device: str | torch.device = "cpu",
) -> dict[str, float | str | int]:
    """Measure samples against the training images, and held-out images in the same way as the reference.

    Most metrics depend on the number of images. So both sides are cut to the same n = min(num_samples, len(held_out)), and
    a metric may be compared with its ``_reference``; numbers of two models compare only at the same ``num_samples``.

    Args:
        samples: images to judge, in batches (B, C, height, width) uint8 of grey levels 0..levels-1.
        train: all training images, (N, C, height, width) uint8, N at least 6. The Frechet and the nearest-image
            distances use every one, the other metrics at most 10,000 (the first of a fixed permutation).
        held_out: images of the same distribution that training did not see, likewise.
        features: see :func:`goalgen.metrics.make_features`.
        train_fingerprint: identifies the training images for the cache.
        num_samples: how many samples come in all, at least 6.
        device: where distances between all pairs are computed, in float64.

    Returns:
        frechet_distance, kernel_distance (in squared units of the features), precision, recall, density,
        coverage and nearest_train_distance (mean over images of the root mean square pixel difference to
        the nearest training image, grey levels as 0..1; well below its reference it means memorisation).
        Of each the same for held-out images: frechet_reference, and so on. Also features (their name), num_samples (n above) and num_reference (training images).

    Raises:
        GoalgenError: a set of fewer than 6 images, of another shape or type, or grey levels out of range.
    """
    for count, name in ((num_samples, "samples"), (len(held_out), "held-out images"), (len(train), "training images")):
        if count < LEAST_IMAGES:
            raise GoalgenError(f"sample quality needs at least {LEAST_IMAGES} {name}, not {count}")
    n = min(num_samples, len(held_out))
    reference = Reference(train, levels, features, train_fingerprint, device)
    mine = reference.measure(samples, n)
    theirs = reference.measure_held_out(choose(held_out, n))
    about: dict[str, float | str | int] = {"features": features.name, "num_samples": n, "num_reference": len(train)}
    return about | mine | {f"{name.replace('_distance', '')}_reference": theirs[name] for name in mine}


def choose(rows: Tensor, count: int) -> Tensor:
    """Return at most ``count`` rows, the first of a permutation that depends on their number alone."""
    # Not simply the first rows: a folder of images is often sorted by class.
    return rows[torch.randperm(len(rows), generator=generator(0, "metric rows"))[:count]]

"""How good samples are: distances to the data, each beside what held-out images score."""

from __future__ import annotations

from goalgen.cache import cache_folder, fingerprint_images
from goalgen.metrics.features import (
    ClassifierFeatures,
    Features,
    InceptionFeatures,
    PixelFeatures,
    make_features,
    reference_statistics,
)
from goalgen.metrics.quality import Reference, sample_quality
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
    kernel_mean,
    nearest_distance,
    precision_recall,
    squared_radii,
)

__all__ = [
    "ClassifierFeatures",
    "DensityCoverage",
    "FeatureMoments",
    "Features",
    "InceptionFeatures",
    "Nearest",
    "PixelFeatures",
    "PrecisionRecall",
    "Reference",
    "cache_folder",
    "class_histogram",
    "density_coverage",
    "fingerprint_images",
    "frechet_distance",
    "frechet_from_moments",
    "kernel_distance",
    "kernel_mean",
    "make_features",
    "nearest_distance",
    "precision_recall",
    "reference_statistics",
    "sample_quality",
    "squared_radii",
]

"""How good samples are: distances to the data, each beside what held-out images score."""

from goalgen.metrics.features import make_features
from goalgen.metrics.quality import sample_quality

__all__ = ["make_features", "sample_quality"]

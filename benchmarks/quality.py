"""How good samples are, and how fast they are drawn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from contenders import Row

from goalgen.data import Splits
from goalgen.metrics import make_features, sample_quality

TIMED = 256
"""Images drawn at once to time a sampler."""


def quality(samples: Any, count: int, data: Splits, draw_some: Callable[[], Any]) -> Row:
    """Quality of samples in grey levels, in batches, and how fast they are drawn: the median of three."""
    train, fingerprint = data.train, data.train.fingerprint()
    features = make_features("auto", train.images, train.labels, train.levels, data=data.name, fingerprint=fingerprint)
    found = sample_quality(samples, train.images, data.test.images, train.levels, features,
                           train_fingerprint=fingerprint, num_samples=count)  # fmt: skip
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        draw_some()
        seconds.append(time.perf_counter() - start)
    return {**found, "sampled_images_per_second": TIMED / statistics.median(seconds)}

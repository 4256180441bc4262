"""How good samples are, and how fast they are drawn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

from contenders import Row
from torch import Tensor

from goalgen.data import Splits
from goalgen.metrics import make_features, sample_quality

TIMED, FEWER = 256, 64
"""Images drawn at once to time a sampler, and where it takes more than ``MANY`` evaluations."""
MANY = 4

LONG = 5.0
"""Seconds from which on a sampler is timed once."""


def quality(samples: Iterable[Tensor], count: int, data: Splits, device: str = "cpu") -> Row:
    """Quality of samples in grey levels, in batches."""
    train, fingerprint = data.train, data.train.fingerprint()
    features = make_features("auto", train.images, train.labels, train.levels, data=data.name, fingerprint=fingerprint)
    return sample_quality(samples, train.images, data.test.images, train.levels, features,
                          train_fingerprint=fingerprint, num_samples=count, device=device)  # fmt: skip


def sampling_speed(draw: Callable[[int], Any], evaluations: int) -> float:
    """Images/s of what draws so many of them: the median of three, or of one where that takes long."""
    count = TIMED if evaluations <= MANY else FEWER
    seconds: list[float] = []
    while len(seconds) < 3 and sum(seconds) < LONG:
        start = time.perf_counter()
        draw(count)
        seconds.append(time.perf_counter() - start)
    return count / statistics.median(seconds)

"""How long a run is, and what of its time is kept for its end: to measure, to save, to draw."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

DEFAULT_SECONDS = 600.0
"""Length of a run for which neither steps nor seconds are given."""

SHARE, ALL = 0.05, 0.2
"""Of a run that time limits, what one measurement on held-out images may take, and what all may."""


class Pace:
    """The length of a run, in steps if they are given, else in seconds of training."""

    def __init__(self, max_steps: int | None, max_seconds: float | None) -> None:
        self.max_steps = max_steps
        self.limit = max_seconds or (None if max_steps else DEFAULT_SECONDS)
        """of the seconds, if there is one"""
        self.timed = not max_steps
        """whether the learning rate follows the clock"""
        self.total: float = max_steps or max_seconds or DEFAULT_SECONDS
        self.costs: dict[str, float] = {}  # seconds that each thing which the end needs, too, took the last time
        self.spent: dict[str, float] = {}  # ... and in all, since the process began

    def position(self, step: int, seconds: float) -> float:
        """Where the run stands, of ``total``."""
        return min(seconds, self.total) if self.timed else step

    def done(self, step: int, seconds: float) -> float:
        """Share of the run that lies behind. With --max-steps it is a function of the step alone."""
        return min(seconds / (self.total - self.reserve), 1.0) if self.timed else step / self.total

    @property
    def reserve(self) -> float:
        """Seconds that the end takes, where time limits the run."""
        return min(sum(self.costs.values()), 0.5 * self.total) if self.timed else 0.0

    def is_last_step(self, step: int) -> bool:
        """Whether all steps are taken."""
        return self.max_steps is not None and step >= self.max_steps

    def is_late(self, seconds: float) -> bool:
        """Whether the time is up, but for what the end takes."""
        return self.limit is not None and seconds >= self.limit - self.reserve

    def may_measure(self, seconds: float) -> bool:
        """Whether measurements have taken no more than their share of the time."""
        return not self.timed or self.spent.get("validation", 0.0) + self.costs.get("validation", 0.0) <= ALL * seconds

    @contextmanager
    def taking(self, what: str) -> Iterator[None]:
        """Remember how long the block takes, as it has to be done at the end, too."""
        begun = time.perf_counter()
        yield
        self.costs[what] = time.perf_counter() - begun
        self.spent[what] = self.spent.get(what, 0.0) + self.costs[what]

    def affordable(self, measure: Callable[[], object], agree: Callable[[float], float]) -> tuple[int, float]:
        """How many batches of held-out images one measurement may have, and the seconds that one takes.

        Args:
            measure: measures on one batch.
            agree: makes the number the same in all processes.
        """
        seconds = 0.0
        for _ in range(2):  # the first also warms up
            begun = time.perf_counter()
            measure()
            seconds = time.perf_counter() - begun
        seconds = max(agree(seconds), 1e-9)
        return max(int(SHARE * self.total / seconds), 1), seconds

"""What a run says while it trains, and when it draws pictures of what it has learned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from goalgen.choice import worth
from goalgen.telling import Telling

TIMED = 10
"""Steps after which it is said what the time of a run buys."""

FIRST_PICTURE = 15.0
"""Seconds of training until the first picture; the next ones after twice as many each."""


def next_picture(seconds: float) -> float:
    """The moment after ``seconds`` of training at which a picture is drawn: 15 s, 30 s, 1 min, 2 min, ..."""
    return FIRST_PICTURE * 2 ** max(math.floor(math.log2(max(seconds, 1e-9) / FIRST_PICTURE)) + 1, 0)


class Teller:
    """Tells of a run: step, epochs, bound, images a second, time left, newest picture.

    Args:
        total, position: length of the run, and where it stands: steps, or seconds of training where time limits it.
        step: optimiser steps taken.
        images: training images.
        batch: images of a step.
        limit: seconds of training, where time limits the run.
        chosen: settings were chosen for the user, who is told what the time buys.
    """

    def __init__(
        self,
        total: float,
        position: float,
        step: int,
        images: int,
        batch: int,
        limit: float | None,
        chosen: bool,
        silent: bool,
    ) -> None:
        self.telling = Telling(total, position, silent=silent)
        self.images, self.batch, self.limit, self.chosen = images, batch, limit, chosen
        self.begun = (time.perf_counter(), step)
        self.mark = self.begun
        self.first = step
        self.bits: float | None = None
        self.picture = ""

    def rate(self, step: int) -> float:
        """Images a second since this was last asked."""
        now = time.perf_counter()
        found = (step - self.mark[1]) * self.batch / max(now - self.mark[0], 1e-9)
        self.mark = (now, step)
        return found

    def after(self, step: int, position: float, seconds: float, bits: Callable[[], float]) -> None:
        """A step is done; ``bits`` is its bound in bits/dim, for want of a mean over more."""
        now = time.perf_counter()
        if step == self.first + 1:
            self.begun = (now, step)  # the first step also warms up
        speed = (step - self.begun[1]) * self.batch / (now - self.begun[0]) if step > self.begun[1] else 0.0
        if step == self.first + TIMED and self.chosen and self.limit is not None:
            self.telling.say(worth(self.images, speed, self.limit))

        def words() -> str:
            epochs = step * self.batch / self.images
            parts = [
                f"step {step:,}",
                f"{epochs:,.{1 if epochs >= 1 else 2}f} epochs",
                f"{bits() if self.bits is None else self.bits:.3f} bits/dim",
            ]
            parts += [f"{speed:,.0f} images/s"] if speed else []
            picture = Path(self.picture).name if self.telling.has_bar else self.picture
            return ", ".join(parts + ([f"newest picture {picture}"] if picture else []))

        self.telling.at(position, words, None if self.limit is None else self.limit - seconds)

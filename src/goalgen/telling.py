"""What a long computation says of itself: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from tqdm import tqdm

EVERY = 30.0
"""Seconds between lines where there is no terminal."""

SURE = 5.0
"""Seconds of work before an estimate of the rest is worth saying: the first moments are the slowest."""


def duration(seconds: float) -> str:
    """Seconds in words: "48 s", "3:05 min", "2:03:05 h"."""
    whole = max(math.ceil(seconds), 0)
    if whole < 120:
        return f"{whole} s"
    minutes, hours = divmod(whole, 60), divmod(whole // 60, 60)
    return f"{minutes[0]}:{minutes[1]:02d} min" if whole < 7200 else f"{hours[0]}:{hours[1]:02d}:{whole % 60:02d} h"


class Telling:
    """Says how far a computation is.

    Args:
        total: what there is to do, in any unit.
        position: what of it is done already.
        title: before every line.
        silent: say nothing at all.
        clock: seconds, for the estimate of the rest.
    """

    def __init__(
        self,
        total: float,
        position: float = 0.0,
        title: str = "",
        *,
        silent: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.position, self.title, self.silent, self.clock = total, position, title, silent, clock
        self.begun: tuple[float, float] | None = (
            None  # time and position when the first piece, which also warms up, was done
        )
        self.told = clock()
        self.bar = tqdm(
            total=total, initial=position, unit="", disable=silent or not sys.stderr.isatty(), desc=title or None,
            bar_format="{l_bar}{bar}|",
        )  # fmt: skip

    def __enter__(self) -> Telling:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self.bar.close()

    def left(self) -> float | None:
        """Seconds that the rest will take; None while that cannot be known."""
        if self.begun is None or self.position <= self.begun[1] or self.clock() - self.begun[0] < SURE:
            return None
        return (self.total - self.position) * (self.clock() - self.begun[0]) / (self.position - self.begun[1])

    def at(self, position: float, words: Callable[[], str] = str, left: float | None = None) -> None:
        """Work has come to ``position``; ``words`` say more, and are asked for only when something is said.

        Args:
            left: seconds that the rest takes, where that is known.
        """
        now, self.position = self.clock(), position
        if self.begun is None:
            self.begun = (now, position)
        if self.silent:
            return
        try:
            self._show(position, words, left, now)
        except OSError:  # the terminal is gone; the work goes on
            self.silent = True

    def _show(self, position: float, words: Callable[[], str], left: float | None, now: float) -> None:
        if not self.bar.disable:
            self.bar.n = position
            if now - self.told >= 0.2:
                self.told = now
                # Not a postfix, before which tqdm puts a comma. The time first: what is too long for the terminal is cut off.
                line = self._line(words(), left, time_first=True).replace("{", "{{").replace("}", "}}")
                self.bar.bar_format = "{l_bar}{bar}| " + line
                self.bar.refresh()
        elif now - self.told >= EVERY:
            self.told = now
            share = f"{100 * position / self.total:.0f}%" if self.total else ""
            print(
                ": ".join(filter(None, [self.title, ", ".join(filter(None, [share, self._line(words(), left)]))])),
                file=sys.stderr,
                flush=True,
            )

    def _line(self, words: str, left: float | None, *, time_first: bool = False) -> str:
        rest = self.left() if left is None else left
        parts = [words, "" if rest is None else f"{duration(rest)} left"]
        return ", ".join(filter(None, parts[::-1] if time_first else parts))

    @property
    def has_bar(self) -> bool:
        """Whether this is said in a bar, where there is little room."""
        return not self.bar.disable

    def say(self, line: str) -> None:
        """A line of its own, above the bar if there is one."""
        with suppress(OSError):
            if not self.silent:
                tqdm.write(line, file=sys.stderr)
                sys.stderr.flush()

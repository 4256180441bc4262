"""The action is the next canvas: from the user's initial state to the goal through ever less noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goalgen.environment import Continuous, Environment
from goalgen.errors import GoalgenError


class Schedule(nn.Module):
    """How much of the goal is on the canvas after each step: the logarithm of its signal-to-noise ratio.

    The ratio is 0 at step 0 and rises from step to step. (Equation 22)

    Args:
        log_snr: log SNR_1 .. log SNR_H (nats), strictly rising: (H,).
        learn: learn them; they stay in order, as what is learned is their first value and the logarithms of their
            differences.

    Raises:
        GoalgenError: they do not rise.
    """

    def __init__(self, log_snr: Tensor, learn: bool = True) -> None:
        super().__init__()
        gaps = log_snr.diff()
        if not torch.isfinite(log_snr).all() or (gaps <= 0).any():
            raise GoalgenError("the signal-to-noise ratio must be finite and rise from step to step")
        self.first = nn.Parameter(log_snr[:1].clone(), requires_grad=learn)
        self.log_gap = nn.Parameter(gaps.log(), requires_grad=learn and len(gaps) > 0)
        self._held: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def log_snr(self) -> Tensor:
        """log SNR_1 .. log SNR_H, (H,)."""
        return torch.cat([self.first, self.first + self.log_gap.exp().cumsum(0)])

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block the tables below are computed once, however often they are read; weights must not change."""
        self._held = self._tables()
        try:
            yield
        finally:
            self._held = None

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma and log SNR at steps 0..H, (H + 1,) each."""
        if self._held is not None:
            return self._held
        log_snr = self.log_snr
        signal, noise = F.logsigmoid(log_snr), F.logsigmoid(-log_snr)
        alpha = torch.exp(0.5 * (signal - signal[-1]))
        sigma = torch.exp(0.5 * (noise - signal[-1]))
        nothing = log_snr.new_full((1,), -math.inf)
        return (
            torch.cat([alpha.new_zeros(1), alpha]),
            torch.cat([sigma.new_ones(1), sigma]),
            torch.cat([nothing, log_snr]),
        )

    def alpha(self, h: Tensor) -> Tensor:
        """Share of the goal in the canvas at steps ``h`` (B,) in 0..H; 0 at 0 and 1 at H. (Equation 22)"""
        return self._tables()[0][h]

    def sigma(self, h: Tensor) -> Tensor:
        """Standard deviation of the noise at steps ``h`` (B,) in 1..H. (Equation 22)

        At step 0 there is none, and 1 is returned in its place, for no formula divides by it to any effect.
        """
        return self._tables()[1][h]

    def correlation(self, h: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
        """rho and 1 - rho^2 between steps ``h`` and ``to`` > h, (B,) each: rho^2 = SNR_h / SNR_to. (Equation 23)"""
        log_snr = self._tables()[2]
        difference = log_snr[h] - log_snr[to]
        return torch.exp(0.5 * difference), -torch.expm1(difference)

    def gain(self, h: Tensor, to: Tensor) -> Tensor:
        """SNR_to - SNR_h for steps ``h`` < ``to``, (B,)."""
        log_snr = self._tables()[2]
        return -torch.exp(log_snr[to]) * torch.expm1(log_snr[h] - log_snr[to])


def even_schedule(horizon: int, low: float, high: float, learn: bool = True) -> Schedule:
    """log SNR in equal steps from ``low`` to ``high``; their middle where there is one step, which has to pay for all of it."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise GoalgenError(f"--log-snr must be two finite numbers that rise, not {low} {high}")
    cpu = torch.device("cpu")  # numbers, even where a model is built without them
    grid = (
        torch.linspace(low, high, horizon, device=cpu) if horizon > 1 else torch.tensor([(low + high) / 2], device=cpu)
    )
    return Schedule(grid, learn)


@dataclass
class Reading:
    """What the S-agent offers at a state of the bridge."""

    guess: Tensor
    """g_hat, the goal as it guesses it from the canvas, (B, C, height, width)"""
    read: Callable[[Tensor], Tensor] | None
    """how the last action is read: canvases to guesses; None before the last step"""


class BridgeEnvironment(Environment):
    """The action is the next canvas, and the last one is read by the S-agent. (Equation 22)

    A state is a canvas and, below it, the initial state x_0.

    The initial state stays in view, because the noise is around it as much as around the goal: with a function of the
    goal as the start, the agents restore.

    Args:
        shape: (C, height, width) of a canvas.
        schedule: signal-to-noise ratios; its length is H.
    """

    action_space: Continuous

    def __init__(self, shape: tuple[int, int, int], schedule: Schedule) -> None:
        super().__init__()
        self.horizon = len(schedule.log_snr)
        self.shape = shape
        self.state_shape = (2 * shape[0], *shape[1:])
        self.action_space = Continuous(shape)
        self.schedule = schedule

    @property
    def canvas_shape(self) -> tuple[int, ...]:
        return self.shape

    def held(self) -> AbstractContextManager[None]:
        return self.schedule.held()

    def initial(self, canvas: Tensor) -> Tensor:
        return torch.cat([canvas, canvas], 1)

    def canvas(self, state: Tensor) -> Tensor:
        return state[:, : self.shape[0]]

    def start(self, state: Tensor) -> Tensor:
        """x_0 (B, C, height, width), which a state carries along."""
        return state[:, self.shape[0] :]

    def transition(self, h: Tensor, state: Tensor, action: Tensor, offer: Reading) -> Tensor:
        """The action as the next canvas; at the last step, the goal that the S-agent sees in it."""
        canvas = action if offer.read is None else offer.read(action)
        return torch.cat([canvas, self.start(state)], 1)

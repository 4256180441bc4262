"""What all learning shares: what it is told of the run, and what it says of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from goalgen.bound import Bound


@dataclass(frozen=True)
class Clock:
    """Where a run stands."""

    step: int = 0
    """optimiser steps taken"""
    done: float = 0.0
    """share of the run that lies behind, 0 to 1"""


@dataclass
class Learned:
    """What is learned from one batch."""

    loss: Tensor
    """Scalar to minimise, nats an image."""
    bound: Bound
    """J of the batch, split by term, without gradients."""
    info: dict[str, Tensor] = field(default_factory=dict)
    """Scalars worth a line in the log."""
    seen: dict[str, Tensor] = field(default_factory=dict)
    """What the family's ``after_step`` wants to know of the batch; averaged over processes."""

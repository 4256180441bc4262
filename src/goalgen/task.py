"""What episodes are given: initial states, goals, labels, names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """B episodes before they begin."""

    start: Tensor
    """x_0 as canvases, (B, C, height, width)"""
    goals: Tensor | None = None
    """(B, C, height, width) in [-1, 1]; None where the S-agent acts alone"""
    label: Tensor | None = None
    """(B,) int64, of a model that is conditioned on labels"""
    names: Sequence[str] | None = None
    """B names of the goals, where they came from files"""
    episodes: int = 1
    """consecutive rows that share their goal and start"""
    memory: Tensor | None = None
    """(B, numbers) that stages before have left"""

    def __len__(self) -> int:
        return len(self.start)

    @property
    def goal(self) -> Tensor:
        """The goals, where there must be some."""
        assert self.goals is not None, "these episodes have no goals"
        return self.goals

    def to(self, device: torch.device) -> Task:
        """The same on ``device``."""
        goals, label, memory = (None if x is None else x.to(device) for x in (self.goals, self.label, self.memory))
        return replace(self, start=self.start.to(device), goals=goals, label=label, memory=memory)

    def rows(self, keep: slice) -> Task:
        """Some of the episodes."""
        goals, label, memory = (None if x is None else x[keep] for x in (self.goals, self.label, self.memory))
        names = None if self.names is None else self.names[keep]
        return replace(self, start=self.start[keep], goals=goals, label=label, names=names, memory=memory)

    def held(self) -> Task:
        """The same, with nothing to be learned through what stages before have left."""
        memory = None if self.memory is None else self.memory.detach()
        return replace(self, start=self.start.detach(), memory=memory)

    def repeat(self, episodes: int) -> Task:
        """Every episode so many times, one after the other."""
        if episodes == 1:
            return self
        goals, label = (None if x is None else x.repeat_interleave(episodes, 0) for x in (self.goals, self.label))
        names = None if self.names is None else [name for name in self.names for _ in range(episodes)]
        return Task(self.start.repeat_interleave(episodes, 0), goals, label, names, self.episodes * episodes)

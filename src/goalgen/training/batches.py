"""The batch of a step: goals, starts and noise, all functions of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from goalgen import rng
from goalgen.config import Config
from goalgen.data import BatchOrder, ImageSet, augment_shift, binarize_images, to_unit
from goalgen.environments import Environment
from goalgen.errors import GoalgenError
from goalgen.learners import spread_steps
from goalgen.rollout import draw_noise
from goalgen.starts import FolderStart, Start


@dataclass
class Batch:
    """One process's rows of a batch."""

    start: Tensor
    """(B, C, height, width)"""
    goals: Tensor
    """(B, C, height, width) in [-1, 1]"""
    noise: Tensor
    """(H, B, ...)"""
    interrupt: Tensor | None
    """(H, B, 1 + cells), for chain dropout"""
    label: Tensor | None
    """(B,) int64, of a model that is conditioned on labels"""
    steps: Tensor | None
    """(B,) int64, the step that each example visits, where one is enough"""

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``."""
        moved: dict[str, Any] = {k: None if v is None else v.to(device) for k, v in vars(self).items()}
        return Batch(**moved)

    def rows(self, keep: slice) -> Batch:
        """Some of its examples."""
        return Batch(
            self.start[keep],
            self.goals[keep],
            self.noise[:, keep],
            None if self.interrupt is None else self.interrupt[:, keep],
            None if self.label is None else self.label[keep],
            None if self.steps is None else self.steps[keep],
        )


def pairing_names(start: Start, images: ImageSet) -> tuple[str, ...] | None:
    """Names by which a folder of starts is paired with ``images``; None where it is sampled instead."""
    if isinstance(start, FolderStart) and images.names is not None and start.pairs_with(images.names):
        return images.names
    return None


def episodes_per_goal(config: Config) -> int:
    """Episodes of every goal in a batch."""
    chosen = config.training.episodes_per_goal
    if chosen is not None:
        return chosen
    return 4 if config.model.gc_agent == "value" else 1


class Batches:
    """Random access to the batches of a run.

    Every process draws the numbers of the whole batch and keeps its rows, so that the number of processes does not
    change what is learned from.
    """

    def __init__(
        self,
        config: Config,
        train: ImageSet,
        binarize: bool,
        start: Start,
        environment: Environment,
        rank: int,
        world: int,
        marginals: bool = False,
    ) -> None:
        """``marginals``: the learner visits one step of each episode, and needs noise for that one alone."""
        size = config.training.batch_size
        self.config = config
        self.train = train
        self.binarize = binarize
        self.start = start
        self.environment = environment
        self.marginals = marginals
        self.episodes = episodes_per_goal(config)
        if size % (world * self.episodes):
            raise GoalgenError(
                f"--batch-size {size} cannot be shared by {world} processes with {self.episodes} episodes for every goal; "
                f"make it a multiple of {world * self.episodes}"
            )
        self.order = BatchOrder(len(train), size // self.episodes, config.seed)
        self.names = pairing_names(start, train)
        self.rows = slice(rank * size // world, (rank + 1) * size // world)

    def __call__(self, step: int) -> Batch:
        """The batch of optimiser step ``step`` (counted from 0)."""
        seed, settings = self.config.seed, self.config.training
        indices = self.order.indices(step)
        images = self.train.images[indices]
        levels = self.train.levels
        if settings.augment:
            images = augment_shift(images, rng.generator(seed, "augmentation", step))
        if self.binarize:
            images, levels = binarize_images(images, levels, rng.generator(seed, "binarisation", step)), 2
        goals = to_unit(images, levels)
        names = [self.names[i] for i in indices.tolist()] if self.names else None
        start = self.start(len(goals), goals=goals, names=names, generator=rng.generator(seed, "start", step))
        goals, start = (x.repeat_interleave(self.episodes, 0) for x in (goals, start))
        label = None
        if self.config.model.condition == "label":
            assert self.train.labels is not None
            label = self.train.labels[indices].long().repeat_interleave(self.episodes, 0)
        count, steps = len(goals), None
        generator = rng.generator(seed, "actions", step)
        if self.marginals:
            space = self.environment.action_space
            noise = space.noise(count, generator).unsqueeze(0)
            steps = spread_steps(count, self.environment.horizon, generator)
        else:
            noise = draw_noise(self.environment, count, generator)
        interrupt = None
        if settings.chain_dropout > 0:
            cells = self.environment.action_space.shape[0]
            generator = rng.generator(seed, "chain dropout", step)
            interrupt = torch.rand(self.environment.horizon, count, 1 + cells, generator=generator)
            interrupt[:, :, 0] -= settings.chain_dropout
        return Batch(start, goals, noise, interrupt, label, steps).rows(self.rows)

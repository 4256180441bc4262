"""The batch of a step: goals, starts and what is drawn at random, all functions of (seed, step)."""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from goalgen import rng
from goalgen.config import Config
from goalgen.data import BatchOrder, ImageSet, Share, augment_flip, augment_shift, binarize_images, to_unit
from goalgen.errors import GoalgenError
from goalgen.family import Draws, Family
from goalgen.starts import Start
from goalgen.task import Task


class Batch(NamedTuple):
    """One process's rows of a batch, on the device of the weights."""

    task: Task
    draws: Draws


def conditional_on(family: Family, start: Start, paired: bool) -> list[str]:
    """What a bound is given besides a start that knows nothing of the goal: it bounds -log p(image given these).

    A start knows of the goal that is a function of it, or ``paired``, its partner in a folder.
    """
    told = ["label"] if family.num_labels else []
    return told + ([f"start {start.spec}"] if start.needs_goal or paired else [])


def mean_image(images: ImageSet) -> Tensor:
    """Mean of the training images in [-1, 1], (C, height, width)."""
    total = torch.zeros(images.shape, dtype=torch.int64)
    for chunk in images.images.split(512):  # sums of whole numbers: the same in whatever pieces
        total += chunk.sum(0, dtype=torch.int64)
    total = total.double()
    return (total / len(images) / (images.levels - 1) * 2 - 1).float()


class Batches:
    """Random access to the batches of a run.

    Every process reads its own goals, and draws the numbers of the whole batch of which it keeps its rows, so that the number
    of processes does not change what is learned from.
    """

    def __init__(
        self, config: Config, train: ImageSet, binarize: bool, start: Start, family: Family, rank: int, world: int
    ) -> None:
        size = config.training.plain().batch_size or 0
        self.config, self.train, self.binarize, self.start, self.family = config, train, binarize, start, family
        self.episodes = config.training.episodes_per_goal or family.gc_agent.episodes_per_goal
        if size % (world * self.episodes):
            raise GoalgenError(
                f"--batch-size {size} cannot be shared by {world} processes with {self.episodes} episodes for every goal; "
                f"make it a multiple of {world * self.episodes}"
            )
        self.order = BatchOrder(len(train), size // self.episodes, config.seed)
        self.names = train.names if start.pairs_with(train.names) else None
        if self.names is not None and config.training.flip:
            raise GoalgenError(
                "--flip would mirror the goals and not their partners in the folder of --start; leave it out"
            )
        self.rows = slice(rank * size // world, (rank + 1) * size // world)
        self.mine = slice(self.rows.start // self.episodes, self.rows.stop // self.episodes)  # ... as goals
        self.maker = ThreadPoolExecutor(1, "batches")  # starts no thread until it is asked to
        self.coming: dict[int, Future[Batch]] = {}

    def steps_of(self, epochs: float | None) -> int | None:
        """Optimiser steps in which the training images are seen so many times."""
        return None if epochs is None else max(math.ceil(epochs * self.order.size / self.order.batch_size - 1e-9), 1)

    def __call__(self, step: int) -> Batch:
        """The batch of optimiser step ``step`` (counted from 0). Where a GPU computes, the next one is made meanwhile."""
        if self.family.device.type == "cpu":
            return self.make(step)
        batch = self.coming.pop(step).result() if step in self.coming else self.make(step)
        self.coming = {step + 1: self.maker.submit(self.make, step + 1)}
        return batch

    def make(self, step: int) -> Batch:
        """A function of the step alone, whenever and on whichever thread it is called."""

        def stream(name: str) -> torch.Generator:
            return rng.generator(self.config.seed, name, step)

        whole = Share(self.order.batch_size, slice(0, self.order.batch_size))
        # Only a start that is drawn by the goals of the whole batch needs them all.
        share = whole if self.start.drawn and self.start.needs_goal else Share(whole.total, self.mine)
        every = self.order.indices(step)
        indices = every[share.rows]
        images, levels = self.train.images[indices], self.train.levels
        if self.config.training.augment:
            images = augment_shift(images, stream("augmentation"), share=share)
        if self.config.training.flip:
            images = augment_flip(images, stream("flips"), share)
        if self.binarize:
            images, levels = binarize_images(images, levels, stream("binarisation"), share), 2
        goals = to_unit(images, levels)
        names = [self.names[i] for i in every.tolist()] if self.names else None
        mine = names and names[share.rows]
        if self.start.drawn:
            told = goals if self.start.needs_goal else None
            start = self.start(whole.total, goals=told, names=names, generator=stream("start"))[share.rows]
        else:
            start = self.start(len(goals), goals=goals, names=mine, generator=stream("start"))
        label = None
        if self.family.num_labels:
            assert self.train.labels is not None
            label = self.train.labels[indices]
        task = Task(start, goals, label, mine)
        task = (task.rows(self.mine) if share == whole else task).repeat(self.episodes)
        draws, device = self.family.draw(whole.total * self.episodes, stream), self.family.device
        return Batch(task.to(device), {k: drawn[:, self.rows].to(device) for k, drawn in draws.items()})

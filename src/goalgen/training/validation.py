"""The bound on held-out goals, by which a run knows its best weights."""

from __future__ import annotations

import torch

from goalgen import rng
from goalgen.data import ImageSet, to_unit
from goalgen.family import Family
from goalgen.starts import Start
from goalgen.task import Task
from goalgen.training.batches import pairing_names

BATCH = 64


@torch.no_grad()
def validation_bound(family: Family, images: ImageSet, start: Start, seed: int) -> float:
    """Mean J over ``images`` in nats, with the same noise at every call. (Equation 3)

    It is the family's own estimate, and may differ a little from what :meth:`goalgen.model.Model.nll_bound` says of whole
    episodes.
    """
    device, names = family.device, pairing_names(start, images)
    passes = -(-family.least_validation // len(images))
    total = 0.0
    for repeat in range(passes):
        for first in range(0, len(images), BATCH):
            rows = slice(first, first + BATCH)
            goals = to_unit(images.images[rows], images.levels)
            generator = rng.generator(seed, "validation", first + repeat * len(images))
            part = None if names is None else list(names[rows])
            canvas = start(len(goals), goals=goals, names=part, generator=generator)
            label = images.labels[rows] if family.num_labels and images.labels is not None else None
            task = Task(canvas, goals, label, part).to(device)
            total += family.estimate(task, lambda _, source=generator: source).total.sum().item()  # type: ignore[misc]
    return total / (passes * len(images))

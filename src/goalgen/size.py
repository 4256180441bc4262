"""How large a model is: weights, and operations."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from goalgen.family import Family
from goalgen.learning import Clock
from goalgen.rollout import draw_noise, sample_rollout
from goalgen.task import Task


def count_parameters(family: Family) -> dict[str, int]:
    """Numbers that are trained or given: those that sampling needs (``generative``), and the GC-agent's."""
    parts = {"generative": family.generative_modules(), "gc_agent": family.gc_modules()}
    return {name: sum(p.numel() for module in modules for p in module.parameters()) for name, modules in parts.items()}


@torch.no_grad()
def count_operations(family: Family) -> dict[str, int]:
    """Floating-point operations for one image: to draw it (``sample``), and to learn from it once (``train``).

    Multiplications and additions of matrix products and convolutions, counted by torch while both are done. Learning
    counts the pass forward, the mean over as many images as there are steps, or 16 (some families visit one step of each);
    the gradient costs about twice as much again.
    """
    # In a black box every image is learned from by whole episodes.
    count, generator = 1 if family.environment.black_box else min(family.horizon, 16), torch.Generator().manual_seed(0)
    image = torch.zeros(count, *family.shape)
    label = torch.zeros(count, dtype=torch.int64) if family.num_labels else None
    task = Task(image, image, label).to(family.device)
    noise = draw_noise(family.environment, 1, generator).to(family.device)
    draws = {name: drawn.to(family.device) for name, drawn in family.draw(count, lambda _: generator).items()}
    training = family.training
    family.eval()
    with FlopCounterMode(display=False) as sample:
        sample_rollout(family, task.rows(slice(1)), noise)
    with FlopCounterMode(display=False) as train:
        for i in range(count):
            one = slice(i, i + 1)
            family.learn(task.rows(one), {name: drawn[:, one] for name, drawn in draws.items()}, Clock())
    family.train(training)
    return {"sample": sample.get_total_flops(), "train": train.get_total_flops() // count}


def describe_size(family: Family) -> str:
    """Weights and operations in one line."""
    weights, operations = count_parameters(family), count_operations(family)
    return (
        f"{weights['generative'] / 1e6:.2f} million weights for sampling, {weights['gc_agent'] / 1e6:.2f} in the GC-agent; "
        f"{operations['sample'] / 1e6:.1f} million operations to draw an image, {operations['train'] / 1e6:.1f} to learn from one "
        "(pass forward)"
    )

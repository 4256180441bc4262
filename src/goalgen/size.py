"""How large a model is: weights, and operations."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from goalgen.agents import Agents
from goalgen.learners import make_learner
from goalgen.rollout import draw_noise, sample_rollout


def count_parameters(agents: Agents) -> dict[str, int]:
    """Numbers that are trained or given: those that sampling needs (``generative``), and the GC-agent's."""
    modules = (agents.environment, agents.s_agent, agents.likelihood)
    return {
        "generative": sum(p.numel() for module in modules for p in module.parameters()),
        "gc_agent": sum(p.numel() for p in agents.gc_agent.parameters()),
    }


@torch.no_grad()
def count_operations(agents: Agents) -> dict[str, int]:
    """Floating-point operations for one image: to draw it (``sample``), and to learn from it once (``train``).

    Multiplications and additions of matrix products and convolutions, counted by torch while both are done. Learning
    counts the pass forward; the gradient costs about twice as much again.
    """
    environment, device = agents.environment, agents.device
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(1, *agents.shape, device=device)
    label = torch.zeros(1, dtype=torch.int64, device=device) if agents.num_labels else None
    noise = draw_noise(environment, 1, generator).to(device)
    training = agents.training
    agents.eval()
    with FlopCounterMode(display=False) as sample:
        sample_rollout(agents, image, noise, label=label)
    learner = make_learner(agents)
    steps = None
    if agents.gc_agent.learner == "marginals":
        noise, steps = noise[:1], torch.full((1,), agents.horizon - 1, device=device)
    with FlopCounterMode(display=False) as train:
        learner(image, image, noise, label=label, steps=steps)
    agents.train(training)
    return {"sample": sample.get_total_flops(), "train": train.get_total_flops()}

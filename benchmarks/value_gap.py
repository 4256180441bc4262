"""By how much does the value agent tighten the bound over the posterior agent, at one fixed, trained S-agent?

The S-agent, its likelihood and the potentials of a run that was trained with the posterior agent are held fixed. V is
then learned on the training images, and both agents are measured on the same test images, three episodes each; the
difference is paired by image. The posterior agent's own temperatures are given the same time of learning, so that both
sides have been fitted to this S-agent. The importance-weighted bound of each is printed beside: how much there is to gain.

    python benchmarks/value_gap.py runs/benchmarks/gc_agents_digits/posterior-0 --seconds 120
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import read, write

from goalgen import load, load_data, rng
from goalgen.agents import Agents, make_gc_agent
from goalgen.bound import bound
from goalgen.data import BatchOrder, to_unit
from goalgen.learners import make_learner
from goalgen.model import Model
from goalgen.rollout import draw_noise, rollout

GOALS, EPISODES = 16, 8
"""Goals in a batch of learning, and episodes of each."""

MEASURED = 3
"""Episodes of each test image that a bound is measured on."""


def learn(agents: Agents, images: torch.Tensor, model: Model, seconds: float, seed: int) -> int:
    """Train only the GC-agent of ``agents`` for so many seconds; returns the steps taken."""
    for parameter in agents.parameters():
        parameter.requires_grad_(False)
    rates = []
    for name, parameter in agents.gc_agent.named_parameters():
        if "log_sigma" not in name:  # the potential belongs to what both agents share
            parameter.requires_grad_(True)
            rates.append({"params": [parameter], "peak": 1e-2 if "temperature" in name or name == "weight" else 1e-3})
    optimizer = torch.optim.AdamW(rates, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)
    learner = make_learner(agents, episodes=EPISODES).eval()
    order = BatchOrder(len(images), GOALS, seed)
    start, begin, step = model.start(), time.perf_counter(), 0
    while (done := (time.perf_counter() - begin) / seconds) < 1:
        goals = to_unit(images[order.indices(step)], model.levels)
        x0 = start(GOALS, goals=goals, generator=rng.generator(seed, "start", step))
        goals, x0 = goals.repeat_interleave(EPISODES, 0), x0.repeat_interleave(EPISODES, 0)
        noise = draw_noise(agents.environment, len(goals), rng.generator(seed, "value gap", step))
        with torch.no_grad():
            trajectory = rollout(agents, x0, goals, noise)
            terms = bound(agents, trajectory)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, (step + 1) / 50) * max(0.02, 1 - done)
        loss, _ = learner.gc_loss(trajectory, terms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    agents.eval()
    return step


def measure(model: Model, images: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """J of every image in nats, mean of MEASURED episodes, and the importance-weighted bound of every image."""
    totals = torch.stack([model.nll_bound(images, seed).total for seed in range(MEASURED)])
    return totals.double().mean(0), model.iw_bound(images, k).double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="runs trained with the posterior agent")
    parser.add_argument("--name", default="digits", help="name of the result file: value_gap_NAME")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--images", type=int, default=2000, help="test images, at most")
    parser.add_argument("--k", type=int, default=64)
    options = parser.parse_args()
    name = f"value_gap_{options.name}"
    results = read(name)
    for folder in options.runs:
        if any(row["run"] == folder.name for row in results["rows"]):
            continue
        model = load(folder)
        data = load_data(model.config.data)
        test = data.test.images[: options.images]
        row: dict[str, Any] = {"run": folder.name, "data": data.name, "images": len(test), "k": options.k}
        before, _ = measure(model, test, 1)
        posterior = model.agents.gc_agent
        value = make_gc_agent("value", model.agents.environment, model.shape)
        value.potential.load_state_dict(posterior.potential.state_dict())
        row["posterior_steps"] = learn(model.agents, data.train.images, model, options.seconds, seed=1)
        ours, row["posterior_iw_nats"] = measure(model, test, options.k)
        model.agents.gc_agent = value
        row["value_steps"] = learn(model.agents, data.train.images, model, options.seconds, seed=1)
        theirs, row["value_iw_nats"] = measure(model, test, options.k)
        difference = ours - theirs
        row |= {
            "posterior_as_trained_nats": before.mean().item(),
            "posterior_nats": ours.mean().item(),
            "value_nats": theirs.mean().item(),
            "posterior_iw_nats": row["posterior_iw_nats"].mean().item(),
            "value_iw_nats": row["value_iw_nats"].mean().item(),
            "gain_nats": difference.mean().item(),
            "gain_standard_error": (difference.std() / len(difference) ** 0.5).item(),
        }
        print(row, flush=True)
        results["rows"].append(row)
        write(name, {**results, "seconds": options.seconds, "episodes": MEASURED})


if __name__ == "__main__":
    main()

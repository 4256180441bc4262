"""What reinforcement learning adds at a fixed S-agent."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from contenders import PROPOSALS, RUNS, Job, Options, Row
from fitting import train_goalgen
from torch import Tensor

from goalgen import load, load_data, rng
from goalgen.bound import bound
from goalgen.data import BatchOrder, to_unit
from goalgen.families import plan_of
from goalgen.family import Family
from goalgen.model import Model
from goalgen.rollout import draw_noise, rollout
from goalgen.task import Task

GOALS, EPISODES, MEASURED = 16, 8, 3
"""Goals in a batch of learning, episodes of each, and episodes of each test image that a bound is measured on."""

GAP = {"digits": (2000, 32), "mnist": (500, 16), "fashion_mnist": (500, 16)}
"""Test images, at most, and trajectories for the tighter bound."""


def value_gap(job: Job, options: Options, folder: Path) -> Row:
    """By how much the value agent tightens the bound over the posterior agent, at one fixed, trained S-agent.

    V is learned on the training images, and both agents are measured on the same test images; the difference is paired by
    image. The posterior agent's own temperatures are given the same time of learning, so that both sides have been fitted to
    this S-agent. The importance-weighted bound of each is measured too: how much there is to gain.
    """
    run = RUNS / f"gc_agents_{options.data}" / job["run"] / "run"  # of gc_agents, if it is there
    if not (run / "best").is_dir():
        run, seed = folder / "run", int(job["run"].removeprefix("posterior-"))
        train_goalgen(run, options, seed, {"gc_agent": "posterior"}, PROPOSALS[options.data])
    model = load(run)
    splits = load_data(model.config.data)
    images, k = splits.test.images[: min(GAP[options.data][0], options.num_test or 10**9)], GAP[options.data][1]

    def measured(k: int) -> tuple[Tensor, Tensor]:
        totals = torch.stack([model.nll_bound(images, seed).total for seed in range(MEASURED)])
        return totals.double().mean(0), model.iw_bound(images, k).double()

    family = model.family
    before, _ = measured(1)
    torch.manual_seed(0)
    value = family.gc_agents["value"](plan_of(model.config, model.shape, model.levels), family.environment)
    value.potential.load_state_dict(family.gc_agent.potential.state_dict())
    posterior_steps = learn_gc_agent(family, splits.train.images, model, options.seconds)
    ours, ours_tight = measured(k)
    family.gc_agent = value
    value_steps = learn_gc_agent(family, splits.train.images, model, options.seconds)
    theirs, theirs_tight = measured(k)
    gain = ours - theirs
    nats = {"posterior_as_trained": before, "posterior": ours, "value": theirs, "posterior_iw": ours_tight,
            "value_iw": theirs_tight, "gain": gain}  # fmt: skip
    return {
        "data": splits.name, "images": len(images), "k": k, "posterior_steps": posterior_steps, "value_steps": value_steps,
        **{f"{name}_nats": values.mean().item() for name, values in nats.items()},
        "gain_standard_error": (gain.std() / len(gain) ** 0.5).item(),
    }  # fmt: skip


def learn_gc_agent(family: Family, images: Tensor, model: Model, seconds: float, seed: int = 1) -> int:
    """Train only the GC-agent for so many seconds, but for the potential, which both agents share; returns the steps taken."""
    family.requires_grad_(False)
    groups = []
    for name, parameter in family.gc_agent.named_parameters():
        if "log_sigma" not in name:
            parameter.requires_grad_(True)
            peak = 1e-2 if "temperature" in name or name == "weight" else 1e-3
            groups.append({"params": [parameter], "peak": peak})
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)
    order, start = BatchOrder(len(images), GOALS, seed), model.start()
    begin, step = time.perf_counter(), 0
    while (done := (time.perf_counter() - begin) / seconds) < 1:
        goals = to_unit(images[order.indices(step)], model.levels)
        x0 = start(GOALS, goals=goals, generator=rng.generator(seed, "start", step))
        task = Task(x0, goals).repeat(EPISODES)
        noise = draw_noise(family.environment, len(task), rng.generator(seed, "value gap", step))
        with torch.no_grad():
            trajectory = rollout(family, task, noise)
            terms = bound(family, trajectory)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, (step + 1) / 50) * max(0.02, 1 - done)
        loss, _ = family.gc_agent.loss(family, trajectory, terms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    family.eval().requires_grad_(False)
    return step

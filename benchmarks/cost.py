"""Time and peak memory of a training image against the number of steps, for every family.

Each measurement is a process of its own: memory is what the process (on a GPU: the device) held at most, less what it held
before the first step.

    python benchmarks/cost.py
    python benchmarks/cost.py --device cuda --batch 256 --width 64
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from common import read, write

from goalgen.agents import make_agents
from goalgen.config import ModelConfig
from goalgen.learners import PathwiseLearner, make_learner, spread_steps
from goalgen.rollout import draw_noise

FAMILIES = {
    "fixed bridge": {"environment": "bridge", "gc_agent": "fixed"},
    "learned bridge": {"environment": "bridge", "gc_agent": "learned"},
    "latent": {"environment": "latent"},
    "latent, recomputed": {"environment": "latent", "recompute": True},
    "proposals": {"environment": "proposals"},
}
SHAPE, LEVELS = (1, 28, 28), 256


def peak(device: str) -> float:
    """Most memory held so far, MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One configuration, in this process."""
    config = ModelConfig(
        **FAMILIES[options.family], horizon=options.horizon, network="unet", patch=2, width=options.width, depth=1,
        head_width=16, latent_size=8,
    )  # fmt: skip
    agents = make_agents(config, SHAPE, LEVELS).to(options.device)
    learner = make_learner(agents)
    if isinstance(learner, PathwiseLearner):
        learner.recompute = config.recompute
    optimizer = torch.optim.AdamW([p for p in agents.parameters() if p.requires_grad], 1e-4)
    generator = torch.Generator().manual_seed(0)
    goals = torch.rand(options.batch, *SHAPE, generator=generator).to(options.device) * 2 - 1
    start = torch.zeros_like(goals)
    noise = draw_noise(agents.environment, options.batch, generator)
    steps = None
    if agents.gc_agent.learner == "marginals":
        noise, steps = noise[:1], spread_steps(options.batch, options.horizon, generator).to(options.device)
    noise = noise.to(options.device)
    before, times = peak(options.device), []
    for _ in range(options.repeats + 1):
        begin = time.perf_counter()
        loss = learner(start, goals, noise, steps=steps).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if options.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return {
        "milliseconds_per_image": 1000 * statistics.median(times[1:]) / options.batch,
        "kib_per_image": 1024 * (peak(options.device) - before) / options.batch,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--horizons", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--family", choices=list(FAMILIES), help=argparse.SUPPRESS)
    parser.add_argument("--horizon", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.family:
        print(json.dumps(measure(options)))
        return
    name = "cost" if options.device == "cpu" else f"cost_{options.device}"
    results = read(name)
    results |= {"batch": options.batch, "width": options.width, "rows": []}
    for horizon in options.horizons:
        for family in FAMILIES:
            passed = ["--batch", options.batch, "--width", options.width, "--repeats", options.repeats]
            one = [sys.executable, __file__, *map(str, passed), "--device", options.device]
            one += ["--family", family, "--horizon", str(horizon)]
            numbers = json.loads(subprocess.run(one, capture_output=True, text=True, check=True).stdout)
            row = {"family": family, "horizon": horizon, **numbers}
            print(row, flush=True)
            results["rows"].append(row)
            write(name, results)


if __name__ == "__main__":
    main()

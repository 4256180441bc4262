"""What each part of the choice for large images is worth: less or more of one thing at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import contenders
import torch
from contenders import Contender, Job, Options, Row, weights_of
from fitting import train_goalgen
from quality import quality, sampling_speed
from torch import Tensor

from goalgen import rng
from goalgen.data import from_unit, to_unit
from goalgen.families.stages import Stages
from goalgen.model import Model
from goalgen.rollout import advance, draw_noise, rollout
from goalgen.sampling import BLOCK
from goalgen.task import Task

ABLATED: dict[str, Row] = {
    "as chosen": {"optimizer": "muon"},
    "AdamW": {},
    "two evaluations: a draft and one canvas": {"environment": "code:1+bridge:1"},
    "bridge alone": {"environment": "bridge", "horizon": 4, "code_size": None, "code_modes": None},
    "a drawn draft in place of memory": {"environment": "latent:1+bridge:3", "latent_size": 32, "latent_modes": 2048, "code_size": None, "code_modes": None},
    "no first look": {"first_look": False},
    "no discount": {"discount": None},
    "a code that pays for all its nats from a fifth of the run on": {"code_kl_weight": 1.0, "code_warmup_steps": 150},
    "16 numbers in a code": {"code_size": 16},
    "64 numbers in a code": {"code_size": 64},
    "1 mode": {"code_modes": 1},
    "64 modes": {"code_modes": 64},
    "512 modes": {"code_modes": 512},
    "two codes of 16 numbers, one after the other": {"environment": "code:2+bridge:3", "code_size": 16},
}  # fmt: skip
"""What `goalgen train` chooses for large images; then that with AdamW in place of Muon, and of this less or more of one thing."""


def ablation(job: Job, options: Options, folder: Path) -> Row:
    """One variant: samples of it, and samples from the GC-agent's codes of held-out images, which no prior has drawn."""
    settings = (
        contenders.sized(Contender("code, bridge", 4), options) | {"optimizer": "adamw"} | ABLATED[job["variant"]]
    )
    settings = {name: value for name, value in settings.items() if value is not None}
    model, splits, went = train_goalgen(folder / "run", options, job["seed"], settings)
    count, test = len(splits.test), splits.test
    numbers = quality(
        (model.sample(min(256, count - i), first=i).levels for i in range(0, count, 256)),
        count,
        splits,
    )
    numbers["sampled_images_per_second"] = sampling_speed(model.sample, model.family.horizon)
    bound = model.nll_bound(test.images)
    row = {"bits_per_dim": float(model.bits_per_dim(bound.total.mean())), "kl_nats": bound.kl.mean(1).tolist(), **numbers,
           "trained_steps": went["steps"], "parameters": weights_of(model.family), "operations": contenders.operations_of(model.family),
           "command": went["command"]}  # fmt: skip
    if settings["environment"].startswith("code"):
        told = quality(from_codes(model, test.images), count, splits)
        row["frechet_distance_from_gc_codes"] = told["frechet_distance"]
    return row


def from_codes(model: Model, goals: Tensor) -> Iterable[Tensor]:
    """What the later stages make of the GC-agent's codes of ``goals``, in grey levels, by blocks."""
    family = model.family
    assert isinstance(family, Stages)
    code, count = family.parts[0], family.environment.ends[0]
    for first in range(0, len(goals), BLOCK):
        some = to_unit(goals[first : first + BLOCK], model.levels)
        task = Task(model.start()(len(some)), some)
        noise = draw_noise(family.environment, len(some), rng.generator(0, "codes", first))
        with torch.no_grad():
            state = rollout(family, task, noise, steps=count, weigh=False).states[-1]
            with family.environment.held():
                for h in range(code.horizon, family.horizon):
                    seen = family.see(h, state)
                    decision = family.s_agent.decide(seen)
                    state = advance(seen, decision.policy.sample(noise[h]), decision.offer)
            yield from_unit(family.environment.canvas(state), model.levels)

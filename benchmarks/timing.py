"""Seconds and memory: training beside other packages' loops, where the time of a step goes, and what a step costs by horizon.

Every function measures one row, in a process of its own: memory is what this process has held at most.
"""

from __future__ import annotations

import copy
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import contenders
import torch
from contenders import Contender, Job, Options, Row, weights_of
from torch import Tensor, nn

from goalgen import configure
from goalgen.data import ImageSet, Splits
from goalgen.families import make
from goalgen.learning import Clock
from goalgen.rollout import draw_noise, sample_rollout
from goalgen.task import Task
from goalgen.training import ema
from goalgen.training.loop import Trainer

SHAPE, LEVELS = (1, 28, 28), 256
GOALGEN = {
    "goalgen fixed bridge": Contender("fixed bridge", 50, settled_for=""),
    "goalgen learned bridge": Contender("learned bridge", 50, settled_for=""),
    **{f"goalgen {family} H={h}": Contender(family, h, settled_for="")
       for family, h in (("latent", 1), ("latent", 4), ("proposals", 4), ("code, bridge", 4))},
}  # fmt: skip
NETWORKS = {
    "mlp": ({"network": "mlp", "depth": 4, "patch": 4}, 8), "unet": ({"network": "unet", "depth": 2, "patch": 2}, 4),
    "transformer": ({"network": "transformer", "depth": 4, "patch": 4}, 8),
}  # fmt: skip
"""Settings, and of what a width is a multiple: a U-Net's weights grow faster with it."""

BLOCK = 20
"""Steps that are timed together: both goalgen and a peer average their weights at some steps only."""

COSTS = {**contenders.FAMILIES, "latent, recomputed": {"environment": "latent", "recompute": True}}

Step = Callable[[], Any]
Sample = Callable[[int], Any]


def setup_of(options: Options) -> contenders.Setup:
    model, multiple = NETWORKS[options.network]
    return contenders.Setup(SHAPE, LEVELS, options.weights, model, multiple=multiple)


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak(device: str) -> float:
    """Most memory held so far, MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# training steps -----------------------------------------------------------------------------------------------------


def make_trainer(name: str, precision: str, options: Options, folder: Path) -> tuple[Trainer, Sample]:
    """goalgen's own training loop, and a sampler of batches."""
    contender, setup = GOALGEN[name], setup_of(options)
    settings = contenders.settings_of(contender, setup)
    width = contenders.equal_width(contender, setup, settings)
    images = torch.randint(0, LEVELS, (4096, *SHAPE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = ImageSet(images, LEVELS)
    config = configure(**settings, width=width, head_width=max(8, width // 2), out=folder / "run", max_steps=10**6,
                       batch_size=options.batch, precision=precision, quiet=True)  # fmt: skip
    trainer = Trainer(config, Splits(data, data, data, None, "random"))
    trainer.progress.step = 2000  # as in the middle of a run,
    for name, buffer in trainer.family.named_buffers():
        if name.endswith("rehearsed"):  # when codes of earlier batches fill what is kept of them
            buffer.fill_(1.0)
    family = trainer.ema.module

    def sample(count: int) -> Tensor:
        noise = draw_noise(family.environment, count, torch.Generator().manual_seed(0)).to(family.device)
        return sample_rollout(family, Task(torch.zeros(count, *SHAPE, device=family.device)), noise).states[-1]

    return trainer, sample


def goalgen_step(name: str, precision: str, options: Options, folder: Path) -> tuple[Step, nn.Module, Sample]:
    """A step of that loop."""
    trainer, sample = make_trainer(name, precision, options, folder)
    return trainer._step, trainer.family, sample


def peer_network(options: Options) -> nn.Module:
    """The peers' network, of as many weights as goalgen's."""
    from peers import Denoiser

    setup = setup_of(options)

    def network(width: int) -> nn.Module:
        return Denoiser(contenders.spec_of(setup, width))

    width = contenders.fit_width(lambda w: weights_of(network(w)), setup.weights, "the peers", setup.multiple)
    return network(width).to(options.device)


def loader(options: Options) -> Iterator[Tensor]:
    """Batches of decoded images in [-1, 1], from memory."""
    images = torch.rand(4096, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    data = torch.utils.data.TensorDataset(images)
    batches = torch.utils.data.DataLoader(data, options.batch, shuffle=True, drop_last=True)
    while True:
        for (batch,) in batches:
            yield batch.to(options.device)


@torch.no_grad()
def one_evaluation(network: nn.Module, count: int, device: Any) -> Tensor:
    return network(torch.zeros(count, *SHAPE, device=device), torch.full((count,), 0.5, device=device))


def diffusers_step(_: str, precision: str, options: Options, folder: Path) -> tuple[Step, nn.Module, Sample]:
    """The loop of diffusers' unconditional training example."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    accelerator = Accelerator(mixed_precision=precision, cpu=options.device == "cpu")
    network, batches, schedule = peer_network(options), loader(options), DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    rate = get_cosine_schedule_with_warmup(optimizer, 500, 10**6)
    network, optimizer, rate = accelerator.prepare(network, optimizer, rate)
    average = EMAModel(network.parameters(), decay=0.9999)

    def step() -> None:
        clean = next(batches)
        noise = torch.randn_like(clean)
        t = torch.randint(0, 1000, (len(clean),), device=clean.device)
        noisy = schedule.add_noise(clean, noise, t)
        loss = nn.functional.mse_loss(network(noisy, t / 1000), noise)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        average.step(network.parameters())
        loss.detach().item()  # the example logs it at every step

    return step, network, lambda count: one_evaluation(network, count, accelerator.device)


def torchcfm_step(_: str, precision: str, options: Options, folder: Path) -> tuple[Step, nn.Module, Sample]:
    """The loop of torchcfm's image example, with optimal-transport pairing."""
    from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher

    network, batches = peer_network(options), loader(options)
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 5000) / 5000)
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)

    def step() -> None:
        optimizer.zero_grad()
        clean = next(batches)
        t, x, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(clean), clean)
        with torch.autocast(options.device, torch.bfloat16, enabled=precision == "bf16"):
            loss = torch.mean((network(x, t) - velocity) ** 2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
                mine.copy_(mine * 0.9999 + theirs * 0.0001)

    return step, network, lambda count: one_evaluation(average, count, options.device)


PEERS = {"diffusers + Accelerate": diffusers_step, "torchcfm": torchcfm_step}


def speed(job: Job, options: Options, folder: Path) -> Row:
    """Training and sampling speed of one contender in one precision."""
    torch.manual_seed(0)
    step, network, sample = PEERS.get(job["contender"], goalgen_step)(
        job["contender"], job["precision"], options, folder
    )
    for _ in range(5):
        step()
    synchronise(options.device)
    times: list[float] = []
    end = time.perf_counter() + options.seconds
    while time.perf_counter() < end or not times:
        start = time.perf_counter()
        for _ in range(BLOCK):
            step()
        synchronise(options.device)
        times.append((time.perf_counter() - start) / BLOCK)
    memory, drawing = peak(options.device), []
    for i in range(6):
        start = time.perf_counter()
        sample(options.batch)
        synchronise(options.device)
        drawing += [time.perf_counter() - start] if i else []
    return {"images_per_second": options.batch / statistics.median(times), "weights": weights_of(network),
            "peak_mib": memory, "seconds_per_image": statistics.median(drawing) / options.batch}  # fmt: skip


# where the time goes ------------------------------------------------------------------------------------------------

FROM = ema.FROM


def fused(trainer: Trainer, on: bool) -> None:
    """AdamW as one pass over weights and moments, or in torch's own default form."""
    for group in trainer.optimizer.param_groups:
        group["fused"] = on


def some_steps(trainer: Trainer, on: bool) -> None:
    """The average of the weights over every fourth step, or over every one."""
    ema.FROM = FROM if on else 10**9


SAVINGS: dict[str, Callable[[Any, bool], None]] = {"fused AdamW": fused, "average of some steps": some_steps}
"""What can be switched; both are on by default. (channels_last and torch.compile were tried and gained next to nothing.)"""


def time_spent(job: Job, options: Options, folder: Path) -> Row:
    """Where the time of a training step and of sampling goes, or what a saving, switched on and off in turns, is worth."""
    torch.manual_seed(0)
    trainer, sample = make_trainer(job["contender"], "auto", options, folder)
    if job["saving"]:
        return saved(trainer, SAVINGS[job["saving"]], options.device)
    drawn = drawing(trainer, sample, options)
    return {"parts_ms": parts(trainer, options.device), **drawn, "precision": trainer.accelerator.mixed_precision}


def timed(call: Callable[..., Any], device: str, add: Callable[[float], None]) -> Callable[..., Any]:
    """The same call, its seconds told to ``add``."""

    def run(*arguments: Any, **named: Any) -> Any:
        synchronise(device)
        start = time.perf_counter()
        result = call(*arguments, **named)
        synchronise(device)
        add(time.perf_counter() - start)
        return result

    return run


def parts(trainer: Any, device: str, repeats: int = 20) -> dict[str, float]:
    """Milliseconds of each part of a training step, and of the whole."""
    spent: dict[str, float] = defaultdict(float)

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return timed(call, device, lambda seconds: spent.update({name: spent[name] + seconds}))

    trainer.batches = watched("batch", trainer.batches)
    trainer.learner.forward = watched("forward", trainer.learner.forward)
    trainer.accelerator.backward = watched("backward", trainer.accelerator.backward)
    trainer.updates.shorten = watched("norm of the gradient", trainer.updates.shorten)
    trainer.optimizer.step = watched("optimiser", trainer.optimizer.step)
    trainer.ema.update = watched("average of the weights", trainer.ema.update)
    for _ in range(5):
        trainer._step()
    spent.clear()
    start = time.perf_counter()
    for _ in range(repeats):
        trainer._step()
    whole = time.perf_counter() - start
    spent["the rest"] = whole - sum(spent.values())
    return {name: 1000 * seconds / repeats for name, seconds in {**spent, "whole step": whole}.items()}


def saved(trainer: Trainer, switch: Callable[[Any, bool], None], device: str, rounds: int = 3) -> dict[str, float]:
    """Milliseconds of a step without and with a saving, and the seconds before its third step was over."""

    def seconds(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            trainer._step()
        synchronise(device)
        return time.perf_counter() - start

    switch(trainer, True)
    first, times = seconds(3), {False: [], True: []}
    for _ in range(rounds):
        for on in (False, True):
            switch(trainer, on)
            seconds(ema.EVERY)
            times[on] += [seconds(ema.EVERY) / ema.EVERY for _ in range(BLOCK // ema.EVERY)]
    without, with_it = (1000 * statistics.median(times[on]) for on in (False, True))
    return {"without_ms": without, "with_ms": with_it, "first_steps_seconds": first}


def drawing(trainer: Trainer, sample: Sample, options: Options) -> dict[str, float]:
    """Milliseconds to draw a batch of images, and the part of it that is spent in the S-agent's network."""
    s_agent, spent = trainer.ema.module.s_agent, []
    s_agent.decide = timed(s_agent.decide, options.device, spent.append)  # type: ignore[method-assign]
    for _ in range(2):
        sample(options.batch)
    spent.clear()
    start = time.perf_counter()
    for _ in range(3):
        sample(options.batch)
    synchronise(options.device)
    return {"drawing_ms": 1000 * (time.perf_counter() - start) / 3, "of_it_policy_ms": 1000 * sum(spent) / 3}


def cost(job: Job, options: Options, folder: Path) -> dict[str, float]:
    """Time and peak memory of a training image, by horizon."""
    batch, device = options.batch, options.device
    config = configure(**COSTS[job["family"]], horizon=job["horizon"], network="unet", patch=2, width=options.width, depth=1,
                       head_width=16, **({"latent_size": 8} if "latent" in job["family"] else {}))  # fmt: skip
    family = make(config, SHAPE, LEVELS).to(device)
    optimizer = torch.optim.AdamW([p for p in family.parameters() if p.requires_grad], 1e-4)
    generator = torch.Generator().manual_seed(0)
    goals = torch.rand(batch, *SHAPE, generator=generator) * 2 - 1
    task = Task(torch.zeros_like(goals), goals).to(torch.device(device))
    draws = {name: drawn.to(device) for name, drawn in family.draw(batch, lambda _: generator).items()}
    before, times = peak(device), []
    for _ in range(4):
        begin = time.perf_counter()
        loss = family.learn(task, draws, Clock()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        synchronise(device)
        times.append(time.perf_counter() - begin)
    return {"milliseconds_per_image": 1000 * statistics.median(times[1:]) / batch,
            "kib_per_image": 1024 * (peak(device) - before) / batch}  # fmt: skip

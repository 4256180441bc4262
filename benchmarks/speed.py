"""Training and sampling speed of goalgen beside the training scripts that a user would otherwise start from.

Every contender trains a network of the same kind with the same number of weights (within 5%) on the same batch of 28x28
images, in a process of its own; the contenders take turns, several rounds, and medians are reported. With ``--before`` an
earlier commit of goalgen takes part (needs the git repository).

    python benchmarks/speed.py                              # a CPU, float32 and bfloat16
    python benchmarks/speed.py --before b241baf
    python benchmarks/speed.py --device cuda --network unet --weights 20000000 --batch 256
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import fit_width, read, write
from torch import Tensor

SHAPE, LEVELS = (1, 28, 28), 256
GOALGEN = {
    "goalgen fixed bridge": {"environment": "bridge", "gc_agent": "fixed", "horizon": 50},
    "goalgen learned bridge": {"environment": "bridge", "gc_agent": "learned", "horizon": 50},
    "goalgen latent H=1": {"environment": "latent", "horizon": 1},
    "goalgen latent H=4": {"environment": "latent", "horizon": 4},
    "goalgen proposals H=4": {"environment": "proposals", "horizon": 4},
}
PEERS = ("diffusers + Accelerate", "torchcfm", "denoising-diffusion-pytorch")
DIMENSIONS = {"mlp": {"depth": 4, "patch": 4}, "unet": {"depth": 2, "patch": 2}}
MULTIPLE = {"mlp": 8, "unet": 4}
"""Of which a width is one: a U-Net's weights grow faster with it."""

BLOCK = 20
"""Steps that are timed together: both goalgen and a peer average their weights at some steps only."""


# goalgen -----------------------------------------------------------------------------------------------------------


def make_trainer(name: str, options: argparse.Namespace) -> tuple[Any, int, Callable[[int], Any]]:
    """goalgen's own training loop, its number of weights, and a sampler of batches."""
    from goalgen.agents import make_agents
    from goalgen.config import Config, ModelConfig, TrainingConfig
    from goalgen.data import ImageSet, Splits
    from goalgen.rollout import draw_noise, sample_rollout
    from goalgen.size import count_parameters
    from goalgen.training.loop import Trainer

    def model(width: int) -> ModelConfig:
        return ModelConfig(
            **GOALGEN[name], **DIMENSIONS[options.network], network=options.network, width=width,
            head_width=max(8, width // 2),
        )  # fmt: skip

    def weights(width: int) -> int:
        return sum(count_parameters(make_agents(model(width), SHAPE, LEVELS)).values())

    width = fit_width(weights, options.weights, name, MULTIPLE[options.network])
    images = torch.randint(0, LEVELS, (4096, *SHAPE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = ImageSet(images, LEVELS)
    training = TrainingConfig(batch_size=options.batch, max_steps=10**6, precision=options.precision, quiet=True)
    config = Config(out=Path(tempfile.mkdtemp()) / "run", model=model(width), training=training)
    trainer = Trainer(config, Splits(data, data, data, None, "random"))
    trainer.progress.step = 2000  # as in the middle of a run
    agents = trainer.ema.module

    def sample(count: int) -> Tensor:
        noise = draw_noise(agents.environment, count, torch.Generator().manual_seed(0)).to(agents.device)
        return sample_rollout(agents, torch.zeros(count, *SHAPE, device=agents.device), noise).states[-1]

    return trainer, weights(width), sample


def goalgen_step(name: str, options: argparse.Namespace) -> tuple[Callable[[], Any], int, Callable[[int], Any]]:
    """A training step of that loop, its number of weights, and a sampler of batches."""
    trainer, weights, sample = make_trainer(name, options)
    return trainer._step, weights, sample


# peers -------------------------------------------------------------------------------------------------------------


def peer_network(options: argparse.Namespace) -> tuple[torch.nn.Module, int]:
    """The peers' network, and its number of weights."""
    from peers import Denoiser

    from goalgen.agents.networks import NetworkSpec

    def build(width: int) -> torch.nn.Module:
        size = DIMENSIONS[options.network]
        spec = NetworkSpec(options.network, SHAPE, 1, width, size["depth"], max(8, width // 2), 0.0, size["patch"])
        return Denoiser(spec)

    def weights(width: int) -> int:
        return sum(p.numel() for p in build(width).parameters())

    width = fit_width(weights, options.weights, "the peers' network", MULTIPLE[options.network])
    return build(width), weights(width)


def loader(options: argparse.Namespace) -> Iterator[Tensor]:
    """Batches of decoded images in [-1, 1], from memory."""
    images = torch.rand(4096, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    data = torch.utils.data.TensorDataset(images)
    batches = torch.utils.data.DataLoader(data, options.batch, shuffle=True, drop_last=True)
    while True:
        for (batch,) in batches:
            yield batch


def diffusers_step(options: argparse.Namespace) -> tuple[Callable[[], Any], int, Callable[[int], Any]]:
    """The loop of diffusers' unconditional training example."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    accelerator = Accelerator(mixed_precision=options.precision, cpu=options.device == "cpu")
    network, weights = peer_network(options)
    schedule = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    rate = get_cosine_schedule_with_warmup(optimizer, 500, 10**6)
    network, optimizer, rate = accelerator.prepare(network, optimizer, rate)
    ema = EMAModel(network.parameters(), decay=0.9999)
    batches = loader(options)

    def step() -> None:
        clean = next(batches).to(accelerator.device)
        noise = torch.randn_like(clean)
        t = torch.randint(0, 1000, (len(clean),), device=clean.device)
        noisy = schedule.add_noise(clean, noise, t)
        loss = torch.nn.functional.mse_loss(network(noisy, t / 1000), noise)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        loss.detach().item()  # the example logs it at every step

    return step, weights, lambda count: one_evaluation(network, count, accelerator.device)


def torchcfm_step(options: argparse.Namespace) -> tuple[Callable[[], Any], int, Callable[[int], Any]]:
    """The loop of torchcfm's image example, with optimal-transport pairing."""
    import copy

    from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher

    network, weights = peer_network(options)
    network = network.to(options.device)
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 5000) / 5000)
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    batches = loader(options)

    def step() -> None:
        optimizer.zero_grad()
        clean = next(batches).to(options.device)
        t, x, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(clean), clean)
        with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = torch.mean((network(x, t) - velocity) ** 2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
                mine.copy_(mine * 0.9999 + theirs * 0.0001)

    return step, weights, lambda count: one_evaluation(average, count, options.device)


def ddpm_pytorch_step(options: argparse.Namespace) -> tuple[Callable[[], Any], int, Callable[[int], Any]]:
    """The step of denoising-diffusion-pytorch's Trainer, on our network."""
    from denoising_diffusion_pytorch import GaussianDiffusion
    from ema_pytorch import EMA

    network, weights = peer_network(options)
    network.channels, network.self_condition, network.random_or_learned_sinusoidal_cond = 1, False, False  # type: ignore[assignment]
    plain = network.forward
    network.forward = lambda x, t, condition=None: plain(x, t / 1000)  # type: ignore[method-assign]
    diffusion = GaussianDiffusion(network, image_size=SHAPE[1], timesteps=1000).to(options.device)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10)
    batches = loader(options)

    def step() -> None:
        clean = next(batches).to(options.device)
        with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = diffusion((clean + 1) / 2)
        loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    return step, weights, lambda count: one_evaluation(network, count, options.device)


@torch.no_grad()
def one_evaluation(network: torch.nn.Module, count: int, device: Any) -> Tensor:
    time_ = torch.full((count,), 0.5, device=device)
    return network(torch.zeros(count, *SHAPE, device=device), time_)


# measuring ---------------------------------------------------------------------------------------------------------


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def one(options: argparse.Namespace) -> None:
    """Measure one contender and print a line of JSON."""
    torch.manual_seed(0)
    name = options.one
    make = {"diffusers + Accelerate": diffusers_step, "torchcfm": torchcfm_step,
            "denoising-diffusion-pytorch": ddpm_pytorch_step}  # fmt: skip
    step, weights, sample = make[name](options) if name in make else goalgen_step(name, options)
    for _ in range(5):
        step()
    synchronise(options.device)
    times: list[float] = []
    end = time.perf_counter() + options.seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(BLOCK):
            step()
        synchronise(options.device)
        times.append((time.perf_counter() - start) / BLOCK)
    if options.device == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**20
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    drawing = []
    for i in range(6):
        start = time.perf_counter()
        sample(options.batch)
        synchronise(options.device)
        drawing += [time.perf_counter() - start] if i else []
    row = {
        "images_per_second": options.batch / statistics.median(times), "weights": weights, "peak_mib": memory,
        "seconds_per_image": statistics.median(drawing) / options.batch,
    }  # fmt: skip
    print(json.dumps(row))


def available(name: str) -> bool:
    """Whether a peer's package can be imported here (torchvision has no build for some machines)."""
    module = {"torchcfm": "torchcfm", "denoising-diffusion-pytorch": "denoising_diffusion_pytorch"}.get(name)
    if module is None:
        return True
    code = f"import {module}" + (".conditional_flow_matching" if module == "torchcfm" else ", ema_pytorch")
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(DIMENSIONS), default="mlp")
    parser.add_argument("--weights", type=int, default=3_000_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", choices=["no", "bf16"], nargs="+", default=["no", "bf16"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timed steps, for every contender and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", help="a commit of goalgen to measure beside this one, in float32")
    parser.add_argument("--name", help="of the result file; unset: speed_NETWORK (speed_NETWORK_cuda)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        options.precision = options.precision[0]
        one(options)
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: there is no GPU here")
    name = options.name or f"speed_{options.network}{'_cuda' if options.device == 'cuda' else ''}"
    tree = tempfile.mkdtemp()
    here = Path(__file__).parent
    if options.before:
        subprocess.run(
            ["git", "worktree", "add", "--detach", tree, options.before], cwd=here, check=True, capture_output=True
        )
    jobs = [(contender, precision, False) for precision in options.precision for contender in [*GOALGEN, *PEERS]]
    jobs = [job for job in jobs if available(job[0])]
    jobs += [(contender, "no", True) for contender in GOALGEN if options.before]
    found: dict[tuple[str, str, bool], list[dict[str, float]]] = {job: [] for job in jobs}
    for _ in range(options.rounds):
        for contender, precision, before in jobs:
            command = [sys.executable, str(here / "speed.py"), "--one", contender, "--precision", precision]
            for key in ("network", "weights", "batch", "device", "seconds"):
                command += [f"--{key}", str(getattr(options, key))]
            source = Path(tree) / "src" if before else here.parent / "src"
            environment = {**os.environ, "PYTHONPATH": str(source)}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                sys.exit(f"{contender} failed:\n{done.stderr}")
            found[contender, precision, before].append(json.loads(done.stdout.strip().splitlines()[-1]))
    if options.before:
        subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=here, check=True)
    rows = []
    for (contender, precision, before), values in found.items():
        row: dict[str, Any] = {
            "contender": contender,
            "precision": precision,
            "before": options.before if before else None,
        }
        row |= {key: statistics.median(value[key] for value in values) for key in values[0]}
        row["spread"] = (max(v["images_per_second"] for v in values) - min(v["images_per_second"] for v in values)) / 2
        rows.append(row)
    results = {
        **read(name),
        "rows": rows,
        "network": options.network,
        "batch": options.batch,
        "threads": torch.get_num_threads(),
    }
    for package in ("diffusers", "torchcfm"):
        results["machine"]["versions"][package] = importlib.metadata.version(package)
    write(name, results)


if __name__ == "__main__":
    main()

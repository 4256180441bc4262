"""What a user would train instead: diffusion, flow matching and a VAE, on goalgen's networks.

Noise schedules and their samplers are those of diffusers, the flow-matching targets those of torchcfm. A peer differs from
goalgen in its objective and its sampler alone: it gets the same kind of network (told a continuous time where ours is told
the step), the same optimiser, schedule, average of weights, batch and seconds.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from goalgen import rng
from goalgen.bound import bits_per_dim
from goalgen.config import TrainingConfig
from goalgen.data import BatchOrder, ImageSet, from_unit, to_unit
from goalgen.likelihoods import PixelLikelihood
from goalgen.networks import ImageHead, Middle, NetworkSpec, make_torso, make_trunk
from goalgen.networks.base import layer_weights, matrices
from goalgen.training.ema import EMA
from goalgen.training.machine import choose_precision, seed_dropout
from goalgen.training.muon import Muon
from goalgen.training.optimiser import rate

TRAIN_STEPS = 1000
"""Noise levels of DDPM's schedule."""


class TimeEmbedding(nn.Module):
    """Sinusoids of a time in [0, 1], then one linear layer."""

    def __init__(self, width: int, frequencies: int = 32) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0.0, math.log(1000.0), frequencies)))
        self.mix = nn.Linear(2 * frequencies, width)

    def forward(self, time: Tensor) -> Tensor:
        angles = time.float().unsqueeze(-1) * self.frequencies
        return self.mix(torch.cat([angles.sin(), angles.cos()], -1))


def tell_time(module: nn.Module) -> nn.Module:
    """Replace every table of steps by an embedding of time."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Embedding):
                setattr(parent, name, TimeEmbedding(child.embedding_dim))
    return module


DATA_STD = 0.5
"""Rough standard deviation of images, as goalgen's bridge takes it."""


class Denoiser(nn.Module):
    """A network (canvas, time) -> what is to be predicted, of a canvas a g + s noise.

    The canvas is scaled to unit variance, and the network draws what a multiple of the canvas does not predict already, in units of
    its standard deviation, as goalgen's bridge does (Karras et al. 2022, table 1).
    """

    def __init__(self, spec: NetworkSpec, plain: bool = False) -> None:
        """``plain``: without that: the network is given the canvas and predicts what is to be predicted, as they are."""
        super().__init__()
        self.torso = tell_time(make_torso(spec))
        self.head = ImageHead(self.torso, spec, 1, 0.1)
        self.plain = plain

    def forward(self, x: Tensor, time: Tensor, *what: Tensor) -> Tensor:
        """In canvases x at ``time`` (B,), the prediction of ``of_goal`` g + ``of_noise`` noise.

        Args:
            what: a, s, of_goal and of_noise, (B,) each; unset: velocities along straight lines, on which time is the goal's share.
        """
        if self.plain:
            return self.draw(time, x)
        given = what or (time, 1 - time, torch.ones_like(time), -torch.ones_like(time))
        a, s, of_goal, of_noise = (v[:, None, None, None] for v in given)
        variance = (a * DATA_STD) ** 2 + s**2
        skip = (of_goal * a * DATA_STD**2 + of_noise * s) / variance
        size = DATA_STD * (of_goal * s - of_noise * a).abs() * variance.rsqrt()
        return skip * x + size * self.draw(time, x * variance.rsqrt())

    def draw(self, time: Tensor, x: Tensor) -> Tensor:
        """What the network makes of canvases (B, C, height, width)."""
        features, _ = self.torso(time, x)
        drawn: Tensor = self.head(self.torso, torch.zeros(1, dtype=torch.int64, device=x.device), features)[:, 0]
        return drawn


class Peer(nn.Module):
    """A model with a loss and a sampler."""

    samplers: tuple[str, ...]

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.shape = spec.shape

    def can_draw(self, sampler: str, evaluations: int) -> bool:
        """Whether a sampler has such a number of network evaluations."""
        return True

    @abstractmethod
    def loss(self, goals: Tensor, generator: torch.Generator, step: int) -> Tensor:
        """Mean loss of goals (B, C, height, width) in [-1, 1]."""

    @abstractmethod
    def draw(self, sampler: str, evaluations: int, noise: Tensor, generator: torch.Generator) -> Tensor:
        """Images in [-1, 1] from noise (B, C, height, width)."""


class Diffusion(Peer):
    """DDPM (Ho et al. 2020), sampled as such or by DDIM (Song et al. 2021)."""

    def __init__(self, spec: NetworkSpec, prediction: str = "epsilon") -> None:
        super().__init__(spec)
        self.samplers = ("DDPM", "DDIM") if prediction == "epsilon" else ("DDPM (x0)", "DDIM (x0)")
        self.network = Denoiser(spec)
        self.settings = {"num_train_timesteps": TRAIN_STEPS, "prediction_type": prediction}
        self.schedule = DDPMScheduler(**self.settings)

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        """Noise or image, in canvases x (B, ...) at noise levels t (B,)."""
        signal = self.schedule.alphas_cumprod.to(x.device)[t]
        noise = torch.full_like(signal, float(self.schedule.config.prediction_type == "epsilon"))
        return self.network(x, t / TRAIN_STEPS, signal.sqrt(), (1 - signal).sqrt(), 1 - noise, noise)

    def loss(self, goals: Tensor, generator: torch.Generator, step: int) -> Tensor:
        noise = torch.randn(goals.shape, generator=generator, device=generator.device).to(goals.device)
        t = torch.randint(0, TRAIN_STEPS, (len(goals),), generator=generator, device=generator.device).to(goals.device)
        x = self.schedule.add_noise(goals, noise, t)
        target = noise if self.schedule.config.prediction_type == "epsilon" else goals
        return F.mse_loss(self.predict(x, t).float(), target)

    def draw(self, sampler: str, evaluations: int, noise: Tensor, generator: torch.Generator) -> Tensor:
        # "trailing": the first evaluation is at the last noise level, however few there are (Lin et al. 2024).
        kind = DDPMScheduler if sampler.startswith("DDPM") else DDIMScheduler
        schedule = kind(**self.settings, timestep_spacing="trailing", clip_sample=True)
        schedule.set_timesteps(evaluations)
        x = noise
        for t in schedule.timesteps:
            output = self.predict(x, t.to(x.device).expand(len(x)))
            x = schedule.step(output, t, x, generator=generator).prev_sample
        return x


class FlowMatching(Peer):
    """Conditional flow matching (Lipman et al. 2023; Tong et al. 2024), by Euler's or Heun's method.

    Times are logit-normal (Esser et al. 2024).
    """

    samplers: tuple[str, ...] = ("flow matching, Euler", "flow matching, Heun")

    def __init__(self, spec: NetworkSpec, plain: bool = False) -> None:
        super().__init__(spec)
        from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

        self.network = Denoiser(spec, plain)
        self.matcher = ConditionalFlowMatcher(sigma=0.0)
        if plain:
            self.samplers = tuple(name.replace("matching", "matching (plain)") for name in self.samplers)

    def can_draw(self, sampler: str, evaluations: int) -> bool:
        return evaluations % 2 == 0 or "Heun" not in sampler

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Of canvases x (B, ...) at times t (B,)."""
        velocity: Tensor = self.network(x, t)
        return velocity

    def loss(self, goals: Tensor, generator: torch.Generator, step: int) -> Tensor:
        noise = torch.randn(goals.shape, generator=generator, device=generator.device).to(goals.device)
        t = torch.sigmoid(torch.randn(len(goals), generator=generator, device=generator.device)).to(goals.device)
        t, x, velocity = self.matcher.sample_location_and_conditional_flow(noise, goals, t=t)
        return F.mse_loss(self.velocity(x, t).float(), velocity)

    def draw(self, sampler: str, evaluations: int, noise: Tensor, generator: torch.Generator) -> Tensor:
        heun = sampler.endswith("Heun")
        count = evaluations // 2 if heun else evaluations

        def slope(x: Tensor, i: int) -> Tensor:
            return self.velocity(x, torch.full((len(x),), i / count, device=x.device))

        x = noise
        for i in range(count):
            now = slope(x, i)
            if heun:
                now = (now + slope(x + now / count, i + 1)) / 2
            x = x + now / count
        return x


class VAE(Peer):
    """Encoder, standard normal prior, decoder, and goalgen's likelihood (Kingma and Welling 2014)."""

    samplers = ("VAE",)

    def __init__(self, spec: NetworkSpec, levels: int, latent: int = 32, warmup: int = 500) -> None:
        super().__init__(spec)
        self.encoder = make_trunk(spec, spec.shape[0], spec.depth if spec.kind == "unet" else spec.depth // 2)
        self.decoder = make_torso(spec)
        width, positions = self.decoder.trunk.width, self.decoder.trunk.positions
        self.whole = spec.kind != "unet"  # only a U-Net's top needs the maps of a trunk
        if self.whole:
            self.decoder.trunk = nn.Identity()
        self.posterior = nn.Linear(self.encoder.width, 2 * latent)
        self.enter = nn.Linear(latent, width * positions)
        self.place = (positions, width)
        self.head = ImageHead(self.decoder, spec, 1, 0.5)
        self.likelihood = PixelLikelihood(spec.shape, levels)
        self.latent, self.warmup = latent, warmup

    def decode(self, z: Tensor) -> Tensor:
        zero = torch.zeros(1, dtype=torch.int64, device=z.device)
        tokens = self.enter(z).unflatten(1, self.place)
        if self.whole:
            features, _ = self.decoder.top(Middle(tokens, zero, []))
        else:
            middle = self.decoder.trunk(zero, torch.zeros(len(z), *self.shape, device=z.device))
            features, _ = self.decoder.top(middle, tokens)
        return self.head(self.decoder, zero, features)[:, 0]

    def terms(self, goals: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and KL, (B,) nats each."""
        zero = torch.zeros(1, dtype=torch.int64, device=goals.device)
        mean, log_std = self.posterior(F.silu(self.encoder(zero, goals).tokens.mean(1))).chunk(2, -1)
        mean, log_std = mean.float(), 5 * torch.tanh(log_std.float() / 5)
        kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)
        canvas = self.decode(mean + log_std.exp() * noise)
        return -self.likelihood.log_prob(goals, canvas, hold_scale=True), kl

    def loss(self, goals: Tensor, generator: torch.Generator, step: int) -> Tensor:
        noise = torch.randn(len(goals), self.latent, generator=generator, device=generator.device).to(goals.device)
        reconstruction, kl = self.terms(goals, noise)
        return (reconstruction + min(1.0, (step + 1) / self.warmup) * kl).mean()

    def can_draw(self, sampler: str, evaluations: int) -> bool:
        return evaluations == 1

    def draw(
        self, sampler: str, evaluations: int, noise: Tensor, generator: torch.Generator, temperature: float = 1.0
    ) -> Tensor:
        """Decoded latents, from the prior with its variance times ``temperature``."""
        z = torch.randn(len(noise), self.latent, generator=generator).to(noise.device)
        return self.decode(z * temperature**0.5)


METHODS = ("diffusion", "diffusion (x0)", "flow matching", "flow matching (plain)", "VAE", "PixelCNN")


def make_peer(method: str, spec: NetworkSpec, levels: int) -> Peer:
    """The peer called ``method``, its weights a function of torch's global seed."""
    if method == "VAE":
        return VAE(spec, levels)
    if method == "PixelCNN":
        from pixelcnn import PixelCNN

        return PixelCNN(spec, levels)
    if method.startswith("flow matching"):
        return FlowMatching(spec, plain=method.endswith("(plain)"))
    return Diffusion(spec, {"diffusion": "epsilon", "diffusion (x0)": "sample"}[method])  # what its network predicts


@dataclass
class Fitted:
    """A trained peer."""

    peer: Any
    """with averaged weights"""
    steps: int
    seconds: float


def fit(peer: Peer, train: ImageSet, settings: TrainingConfig, seed: int, device: str = "cpu") -> Fitted:
    """Train for ``settings.max_steps`` or ``settings.max_seconds``, in the way and in the precision of :mod:`goalgen.training.loop`."""
    from contenders import operations_of

    settings = settings.plain()
    half = choose_precision(settings.precision, peer, lambda: operations_of(peer)["train"]) == "bf16"
    peer.to(device).train()
    decayed = matrices(peer)
    kept = {id(p) for p in decayed}
    plain = [p for p in peer.parameters() if id(p) not in kept]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    given = {"lr": settings.learning_rate, "betas": (0.9, 0.99), "fused": True}
    muon = settings.optimizer == "muon"
    optimizer = Muon(groups, layer_weights(peer), **given) if muon else torch.optim.AdamW(groups, **given)
    ema = EMA(peer, settings.ema)  # type: ignore[arg-type]
    order = BatchOrder(len(train), settings.batch_size, seed)
    start, step = time.perf_counter(), 0

    def done() -> float:
        if settings.max_steps:
            return step / settings.max_steps
        return (time.perf_counter() - start) / (settings.max_seconds or 60.0)

    while (share := done()) < 1:
        generator = torch.Generator(device).manual_seed(rng.derive_seed(seed, "peer", step))  # on a GPU it draws there
        seed_dropout(rng.derive_seed(seed, "dropout", step))
        goals = to_unit(train.images[order.indices(step)], train.levels).to(device)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate(settings, step, share)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = peer.loss(goals, generator, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), settings.clip_norm)
        optimizer.step()
        step += 1
        ema.update(peer, step)  # type: ignore[arg-type]
    return Fitted(ema.module, step, time.perf_counter() - start)


@torch.no_grad()
def draw(count: int, peer: Any, sampler: str, evaluations: int, data: ImageSet, temperature: float = 1.0) -> Tensor:
    """``count`` images in grey levels of the data, on the CPU."""
    generator, drawn, device = rng.generator(0, "peer samples"), [], next(peer.parameters()).device
    more = {} if temperature == 1.0 else {"temperature": temperature}  # only a VAE has one
    block = 256 if device.type == "cpu" else 2048
    for first in range(0, count, block):
        noise = torch.randn(min(block, count - first), *data.shape, generator=generator).to(device)
        drawn.append(from_unit(peer.draw(sampler, evaluations, noise, generator, **more), data.levels).cpu())
    return torch.cat(drawn)


@torch.no_grad()
def peer_bound(peer: Any, images: Tensor, levels: int) -> float | None:
    """Bits/dim of images (N, C, height, width) in grey levels, a bound or exact; None where the peer has none."""
    generator, totals, device = rng.generator(0, "elbo"), [], next(peer.parameters()).device
    for some in images.split(250):
        goals = to_unit(some, levels).to(device)
        if isinstance(peer, VAE):
            totals.append(sum(peer.terms(goals, torch.randn(len(some), peer.latent, generator=generator).to(device))))
        elif hasattr(peer, "nats"):
            totals.append(peer.nats(goals))
        else:
            return None
    return float(bits_per_dim(torch.cat(totals).mean(), images.shape[1:]))

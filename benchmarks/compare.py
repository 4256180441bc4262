"""goalgen beside what a user would train instead: quality at 1, 2, 4, 8, 16 and 50 network evaluations.

The same kind of network, weights within 5% in all, the same data, batch, optimiser, precision and seconds, several seeds.
Rows already in the result file are not run again.

    python benchmarks/compare.py digits --seconds 40
    GOALGEN_DATA=... python benchmarks/compare.py fashion_mnist --seconds 60
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import RUNS, data_folder, fit_width, read, write
from curve import SETUPS, merged, model_options, rate_for, width_of
from torch import Tensor

from goalgen import rng
from goalgen.agents.networks import NetworkSpec
from goalgen.bound import bits_per_dim
from goalgen.config import Config, DataConfig, ModelConfig, TrainingConfig
from goalgen.data import Splits, from_unit, load_data, to_unit
from goalgen.evaluation import SampleStream
from goalgen.metrics import make_features, sample_quality
from goalgen.model import load
from goalgen.size import count_parameters
from goalgen.training.loop import train

EVALUATIONS = (1, 2, 4, 8, 16, 50)


@dataclass(frozen=True)
class Contender:
    """One way to train, and the numbers of evaluations at which it is sampled."""

    evaluations: tuple[int, ...]
    family: str = ""
    """of goalgen (see curve.py); empty: a peer"""
    horizon: int = 1
    peer: str = ""
    """see peers.py"""
    one_mode: bool = False
    """the policy over latents is one Gaussian, as in curve.py"""


CONTENDERS = {
    "VAE": Contender((1,), peer="VAE"),
    "diffusion": Contender(EVALUATIONS, peer="diffusion"),
    "diffusion (x0)": Contender(EVALUATIONS, peer="diffusion (x0)"),
    "flow matching": Contender(EVALUATIONS, peer="flow matching"),
    "goalgen latent H=1": Contender((1,), "latent", 1),
    "goalgen latent H=1, one mode": Contender((1,), "latent", 1, one_mode=True),
    "goalgen latent H=2": Contender((2,), "latent", 2),
    "goalgen latent H=4": Contender((4,), "latent", 4),
    "goalgen latent H=8": Contender((8,), "latent", 8),
    "goalgen proposals H=2": Contender((2,), "proposals", 2),
    "goalgen proposals H=4": Contender((4,), "proposals", 4),
    "goalgen proposals H=8": Contender((8,), "proposals", 8),
    "goalgen learned bridge H=16": Contender((16,), "learned bridge", 16),
    "goalgen learned bridge H=50": Contender((50,), "learned bridge", 50),
    "goalgen fixed bridge H=50": Contender(EVALUATIONS, "fixed bridge", 50),
}


MODES = {"digits": 32, "mnist": 64, "fashion_mnist": 64}
"""Of a policy over latents, where it has several."""

LATENT_SIZE = {1: 32, 2: 32}
"""On 28x28 images, where curve.py, which is about the bound, has 64; 16 beyond."""

WIDENED = {
    "digits": {"bridge": 1.5},
    "mnist": {"latent": 2.0, "VAE": 2.0, "bridge": 4.0},
    "fashion_mnist": {"latent": 2.0, "VAE": 2.0, "bridge": 4.0},
}
"""A second temperature at which samplers that have one are measured too: chosen by trials of one or two seeds on the Frechet distance
of Fashion-MNIST (of 0.5, 0.7, 0.85, 1, 1.2, 1.5, 2, 3 and 4) and of the digits, where latents gained nothing (the VAE was not tried)."""

TIMED = 256
"""Images drawn at once to time a sampler."""


def settings(data: str, seconds: float, rate: list[str]) -> dict[str, Any]:
    """The setup's training options, as fields of :class:`TrainingConfig`, and its --limit.

    Args:
        rate: option and value of another learning rate than the setup's, or nothing. (The peers keep the setup's: of 2e-3
            and 4e-3 on 28x28 images it was the better or as good for each, by trials of one seed.)
    """
    words = merged(SETUPS[data]["training"], rate)
    found = {
        name.lstrip("-").replace("-", "_"): float(value) for name, value in zip(words[::2], words[1::2], strict=True)
    }
    whole = {k: int(v) if k in ("batch_size", "eval_every", "limit") else v for k, v in found.items()}
    return {**whole, "max_seconds": seconds}


@cache
def peer_width(data: str, method: str) -> int:
    """The even width at which a peer's weights come nearest to the setup's total."""
    from peers import make_peer

    setup = SETUPS[data]

    def weights(width: int) -> int:
        peer = make_peer(method, spec_of(data, width), setup["levels"])
        return sum(p.numel() for p in peer.parameters())

    return fit_width(weights, setup["weights"], method)


def spec_of(data: str, width: int) -> NetworkSpec:
    """A peer's network: of the kind, depth and dropout that goalgen's have on these data."""
    setup, model = SETUPS[data], ModelConfig(**SETUPS[data]["model"])
    return NetworkSpec(model.network, setup["shape"], 1, width, model.depth, width // 2, model.dropout, model.patch)


def measure(samples: Any, count: int, data: Splits) -> dict[str, Any]:
    """Quality of samples in grey levels, in batches, ``count`` in all."""
    train = data.train
    fingerprint = train.fingerprint()
    features = make_features("auto", train.images, train.labels, train.levels, data=data.name, fingerprint=fingerprint)
    return sample_quality(
        samples,
        train.images,
        data.test.images,
        train.levels,
        features,
        train_fingerprint=fingerprint,
        num_samples=count,
    )


def rate_of(draw_some: Callable[[], Any]) -> float:
    """Images drawn in a second, :data:`TIMED` at once: the median of three."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        draw_some()
        seconds.append(time.perf_counter() - start)
    return TIMED / statistics.median(seconds)


def options_of(contender: Contender, data: str) -> dict[str, Any]:
    """Fields of :class:`ModelConfig` but for the widths.

    Beside those of curve.py: a policy over latents has several modes (on the digits at one step only: at more of them samples
    were further from the data, and nearer without), and a network that serves the first step alone does not
    read the mean image that it starts from.
    """
    options: dict[str, Any] = model_options(data, contender.family, contender.horizon)
    if contender.family == "latent":
        several = not contender.one_mode and (data != "digits" or contender.horizon == 1)
        options["latent_modes"] = MODES[data] if several else 1
        options["read_start"] = contender.horizon > 1 and bool(options.get("share_steps", True))
        if data != "digits":
            options["latent_size"] = LATENT_SIZE.get(contender.horizon, 16)
    return options


def named(sampler: str, temperature: float) -> str:
    return sampler if temperature == 1.0 else f"{sampler}, temperature {temperature:g}"


def temperatures(data: str, kind: str) -> tuple[float, ...]:
    """At which a family of goalgen's, or a peer, is sampled."""
    found = [t for name, t in WIDENED[data].items() if name in kind]
    return (1.0, *found)


def run_goalgen(
    contender: Contender, data: str, splits: Splits, seconds: float, seed: int, out: Path
) -> dict[str, Any]:
    training = settings(data, seconds, rate_for(data, contender.family))
    fields_of_model = options_of(contender, data)
    width = width_of(data, fields_of_model, contender.family)
    model_config = ModelConfig(**fields_of_model, width=width, head_width=width // 2)  # type: ignore[arg-type]
    data_config = DataConfig(data=data_folder(data), limit=training.pop("limit", None))
    config = Config(
        out=out, seed=seed, data=data_config, model=model_config,
        training=TrainingConfig(**training, quiet=True, picture_every=0),
    )  # fmt: skip
    outcome = train(config)
    model = load(out)
    test = splits.test
    nats = model.nll_bound(test.images).total.mean()
    results = {}
    for evaluations in contender.evaluations:
        steps = None if evaluations == contender.horizon else evaluations
        for temperature in temperatures(data, contender.family):
            stream = SampleStream(model, test, model.start(None), None, None, 0, None, temperature, steps)
            found = measure(stream.batches(len(test)), len(test), splits)
            assert stream.network_evaluations == evaluations
            found["sampled_images_per_second"] = rate_of(
                lambda steps=steps, t=temperature: model.sample(TIMED, steps=steps, temperature=t)
            )
            results.setdefault(str(evaluations), {})[named("goalgen", temperature)] = found
    return {
        "trained_steps": outcome.step, "trained_seconds": outcome.seconds, "evaluations": results,
        "bits_per_dim": float(bits_per_dim(nats, splits.train.shape)),
        "parameters": sum(count_parameters(model.agents).values()),
    }  # fmt: skip


def run_peer(contender: Contender, data: str, splits: Splits, seconds: float, seed: int) -> dict[str, Any]:
    from peers import VAE, fit, make_peer

    training = settings(data, seconds, [])
    training.pop("limit", None)
    training.pop("eval_every", None)
    torch.manual_seed(rng.derive_seed(seed, "weights"))
    peer = make_peer(contender.peer, spec_of(data, peer_width(data, contender.peer)), splits.train.levels)
    fitted = fit(peer, splits.train, TrainingConfig(**training), seed)
    test, results = splits.test, {}
    row: dict[str, Any] = {}
    with torch.no_grad():
        for evaluations in contender.evaluations:
            for sampler, temperature in product(peer.samplers, temperatures(data, contender.peer)):
                drawn = draw(fitted.peer, sampler, evaluations, len(test), splits, temperature)
                if drawn is not None:
                    found = measure(drawn, len(drawn), splits)
                    found["sampled_images_per_second"] = rate_of(
                        lambda s=sampler, e=evaluations, t=temperature: draw(fitted.peer, s, e, TIMED, splits, t)
                    )
                    results.setdefault(str(evaluations), {})[named(sampler, temperature)] = found
        if isinstance(fitted.peer, VAE):
            generator = rng.generator(0, "elbo")
            totals = []
            for images in test.images.split(250):
                goals = to_unit(images, test.levels)
                noise = torch.randn(len(goals), fitted.peer.latent, generator=generator)
                totals.append(sum(fitted.peer.terms(goals, noise)))
            row["bits_per_dim"] = float(bits_per_dim(torch.cat(totals).mean(), splits.train.shape))
    return {
        **row, "trained_steps": fitted.steps, "trained_seconds": fitted.seconds, "evaluations": results,
        "parameters": sum(p.numel() for p in peer.parameters()),
    }  # fmt: skip


def draw(
    peer: Any, sampler: str, evaluations: int, count: int, data: Splits, temperature: float = 1.0
) -> Tensor | None:
    """``count`` images in grey levels of the data, or None where the sampler has no such number of evaluations."""
    generator = rng.generator(0, "peer samples")
    parts = []
    for first in range(0, count, 256):
        noise = torch.randn(min(256, count - first), *data.train.shape, generator=generator)
        more = {} if temperature == 1.0 else {"temperature": temperature}  # only a VAE has one
        images = peer.draw(sampler, evaluations, noise, generator, **more)
        if images is None:
            return None
        parts.append(from_unit(images, data.train.levels))
    return torch.cat(parts)


def run_one(name: str, data: str, seconds: float, seed: int, num_test: int | None, out: Path) -> None:
    """Train and measure one contender; writes OUT/row.json."""
    contender = CONTENDERS[name]
    splits = load_data(DataConfig(data=data_folder(data), limit=settings(data, 1.0, []).get("limit")))
    if num_test is not None:
        splits = Splits(
            splits.train, splits.validation, splits.test.subset(range(min(num_test, len(splits.test)))), splits.label_names,
            splits.name,
        )  # fmt: skip
    if contender.family:
        row = run_goalgen(contender, data, splits, seconds, seed, out / "run")
    else:
        row = run_peer(contender, data, splits, seconds, seed)
    row = {"contender": name, "seed": seed, "seconds": seconds, "num_test": len(splits.test), **row}
    (out / "row.json").write_text(json.dumps(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=sorted(SETUPS))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--num-test", type=int, default=2000, help="measure on the first so many test images")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--name", help="of the result file; unset: compare_DATA")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a process of its own trains one contender
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options.one, options.data, options.seconds, options.seeds[0], options.num_test, options.out)
        return
    name = options.name or f"compare_{options.data}"
    results = read(name)
    for package in ("diffusers", "torchcfm"):
        results["machine"]["versions"][package] = importlib.metadata.version(package)
    done = {(row["contender"], row["seed"]) for row in results["rows"]}
    waiting = [(c, s) for s in options.seeds for c in options.contenders if (c, s) not in done]
    while waiting:
        batch, waiting = waiting[: options.jobs], waiting[options.jobs :]
        folders, processes = [], []
        for contender, seed in batch:
            out = RUNS / name / f"{contender.replace(' ', '-')}-{seed}-{os.getpid()}"
            out.mkdir(parents=True)
            command = [sys.executable, __file__, options.data, "--one", contender, "--seeds", str(seed), "--seconds",
                       str(options.seconds), "--num-test", str(options.num_test), "--out", str(out)]  # fmt: skip
            processes.append(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}))
            folders.append(out)
        if any(process.wait() for process in processes):
            sys.exit("a run failed")
        for out in folders:
            results["rows"].append(json.loads((out / "row.json").read_text()))
        write(name, {**results, "seconds": options.seconds, "threads": 1})


if __name__ == "__main__":
    main()

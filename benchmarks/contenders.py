"""Who is compared: data sets with their setups, goalgen's families with their settings, the peers; widths that make them equal; and
how goalgen is trained."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from report import APART, RESULTS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from goalgen import configure, load, load_data, rng
from goalgen.config import Config, DataConfig
from goalgen.data import Splits
from goalgen.families import make
from goalgen.family import Family
from goalgen.model import Model
from goalgen.networks import NetworkSpec
from goalgen.settings import complete
from goalgen.size import count_operations, count_parameters
from goalgen.training.loop import Trainer
from goalgen.training.preparation import check_config, prepare_folder

Job = dict[str, Any]
"""What tells a row from the others."""
Row = dict[str, Any]

RUNS = RESULTS / "runs" if APART else Path("runs/benchmarks")


@dataclass(frozen=True)
class Options:
    """What a run is told on the command line; every process that measures a row is told the same."""

    data: str = ""
    seconds: float = 0.0
    seeds: tuple[int, ...] = ()
    trial: bool = False
    equal: str = "weights"
    num_test: int | None = None
    horizons: tuple[int, ...] = ()
    device: str = "cpu"
    network: str = "mlp"
    weights: int = 3_000_000
    batch: int = 64
    width: int = 32


# data sets ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Setup:
    """Images, and what every contender has in common on them."""

    shape: tuple[int, int, int]
    levels: int
    weights: int
    """of each contender in all, within 5%"""
    model: dict[str, Any]
    """settings of the network, by goalgen's names"""
    training: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    """of :func:`goalgen.evaluate`"""
    multiple: int = 2
    """of which a width is one"""
    modes: int = 1
    """of a policy over latents, where it has several"""


DIGITS = Setup(
    (1, 8, 8),
    17,
    250_000,
    {"network": "mlp", "depth": 4, "dropout": 0.1},
    {"batch_size": 64, "ema": 0.9995, "eval_every": 100},
    modes=32,
)
LARGER = Setup(
    (1, 28, 28), 256, 3_000_000, {"network": "mlp", "depth": 2},
    {"batch_size": 64, "learning_rate": 2e-3, "eval_every": 200, "limit": 20_000}, {"iw_images": 2, "iw_k": 2}, modes=64,
)  # fmt: skip
SETUPS = {"digits": DIGITS, "fashion_mnist": LARGER, "mnist": LARGER}

FASTER = 4e-3
"""Learning rate on 28x28 images of the families whose GC-agent learns, which take fewer steps in the same seconds; of 2e-3 and
this the better for each, by trials of one seed. (The peers keep 2e-3: it was the better or as good for each.)"""

OTHER_TEMPERATURE = {
    "digits": {"bridge": 1.5},
    "mnist": {"latent": 2.0, "VAE": 2.0, "bridge": 4.0},
    "fashion_mnist": {"latent": 2.0, "VAE": 2.0, "bridge": 4.0},
}
"""Of another sampler that is measured too; at 1 it is the model. Chosen by trials of one or two seeds on the Frechet distance of
Fashion-MNIST (of 0.5, 0.7, 0.85, 1, 1.2, 1.5, 2, 3 and 4) and of the digits, where latents gained nothing (the VAE was not tried)."""


def data_folder(name: str) -> str:
    """``digits``, or the folder of a data set in $GOALGEN_DATA."""
    if name == "digits":
        return name
    root = os.environ.get("GOALGEN_DATA")
    if not root or not (Path(root) / name).is_dir():
        sys.exit(f"set GOALGEN_DATA to a folder that holds {name}/train.parquet and {name}/test.parquet")
    return str(Path(root) / name)


# contenders ---------------------------------------------------------------------------------------------------------

FAMILIES: dict[str, dict[str, Any]] = {
    "fixed bridge": {"environment": "bridge", "gc_agent": "fixed"},
    "learned bridge": {"environment": "bridge", "gc_agent": "learned"},
    "latent": {"environment": "latent"},
    "proposals": {"environment": "proposals"},
}

EVALUATIONS = (1, 2, 4, 8, 16, 50)


@dataclass(frozen=True)
class Contender:
    """One way to train."""

    family: str = ""
    """of goalgen; empty: a peer"""
    horizon: int = 1
    peer: str = ""
    """see peers.py"""
    settled_for: Literal["samples", "bound", ""] = "samples"
    """what the family's settings are chosen for; empty: its defaults"""
    modes: bool = True
    """the policy over latents has several, where that is worth it"""

    @property
    def evaluations(self) -> tuple[int, ...]:
        """Network evaluations at which it is sampled."""
        return EVALUATIONS if self.family == "fixed bridge" or self.peer not in ("", "VAE") else (self.horizon,)


CONTENDERS = {
    **{name: Contender(peer=name) for name in ("VAE", "diffusion", "diffusion (x0)", "flow matching")},
    "goalgen latent H=1": Contender("latent", 1),
    "goalgen latent H=1, one mode": Contender("latent", 1, modes=False),
    **{f"goalgen latent H={h}": Contender("latent", h) for h in (2, 4, 8)},
    **{f"goalgen proposals H={h}": Contender("proposals", h) for h in (2, 4, 8)},
    **{f"goalgen learned bridge H={h}": Contender("learned bridge", h) for h in (16, 50)},
    "goalgen fixed bridge H=50": Contender("fixed bridge", 50),
}


def settings_of(contender: Contender, setup: Setup) -> dict[str, Any]:
    """Settings of one of goalgen's contenders, but for the widths.

    For the bound a latent on 28x28 images has more numbers where there are few steps, and every step a network of its own: at
    the same number of weights a training image then costs no more at several steps than at one. (Beyond 32 they would be
    too narrow.) For samples it has fewer numbers and a policy of several modes (on the digits at one step only: at more of
    them samples were further from the data, and nearer without), and a network that serves the first step alone does not
    read the mean image that it starts from.
    """
    large, horizon = setup is not DIGITS, contender.horizon
    found = {**FAMILIES[contender.family], **setup.model, **setup.training, "horizon": horizon}
    if not contender.settled_for:
        return found
    if large and contender.family != "fixed bridge":
        found["learning_rate"] = FASTER
    if contender.family != "latent":
        return found
    if large:
        found |= {"latent_size": 64 if horizon <= 4 else 16, "share_steps": horizon == 1 or horizon > 32}
    if contender.settled_for == "samples":
        found["latent_modes"] = setup.modes if contender.modes and (large or horizon == 1) else 1
        found["read_start"] = horizon > 1 and found.get("share_steps", True)
        if large:
            found["latent_size"] = 32 if horizon <= 2 else 16
    return found


def temperatures(data: str, kind: str) -> tuple[float, ...]:
    """At which a family of goalgen's, or a peer, is sampled: 1, which is the model, and perhaps another."""
    return (1.0, *(t for name, t in OTHER_TEMPERATURE[data].items() if name in kind))


# equal sizes --------------------------------------------------------------------------------------------------------


def build(contender: Contender, setup: Setup, settings: dict[str, Any], width: int) -> nn.Module:
    """The untrained model of a width: a :class:`goalgen.Family` or a peer."""
    if contender.family:
        sizes = {"width": width, "head_width": max(8, width // 2)}
        return make(configure(**{**settings, **sizes}), setup.shape, setup.levels)
    from peers import make_peer

    return make_peer(contender.peer, spec_of(setup, width), setup.levels)


def spec_of(setup: Setup, width: int) -> NetworkSpec:
    """A peer's network: of the kind, depth and dropout that goalgen's have on these data."""
    model = configure(**setup.model).model
    return NetworkSpec(
        model.network, setup.shape, 1, width, model.depth, max(8, width // 2), model.dropout, model.patch or 1
    )


def weights_of(module: nn.Module) -> int:
    """All weights, those of the GC-agent counted."""
    if isinstance(module, Family):
        return sum(count_parameters(module).values())
    return sum(p.numel() for p in module.parameters())


def operations_of(module: nn.Module) -> dict[str, int]:
    """Floating-point operations to draw an image (a peer's: of one evaluation) and to learn from one, as
    :func:`goalgen.size.count_operations` counts them."""
    if isinstance(module, Family):
        return count_operations(module)
    image, generator = torch.zeros(1, *module.shape), torch.Generator().manual_seed(0)
    with torch.no_grad(), FlopCounterMode(display=False) as sample:
        module.draw(module.samplers[0], 1, image, generator)
    with torch.no_grad(), FlopCounterMode(display=False) as train:
        module.loss(image, generator, 0)
    return {"sample": sample.get_total_flops(), "train": train.get_total_flops()}


OPERATIONS = 4
"""Operations for a training image (pass forward), over the weights of the setup, where contenders are to have equally many: two
are a pass through so many weights, and proposals need more than that whatever their width, to look through all of them."""


def fit_width(amount: Callable[[int], int], target: int, what: str, multiple: int = 2, tolerance: float = 0.05) -> int:
    """The width, a multiple of ``multiple``, at which ``amount(width)`` comes nearest to the target; exit where none does.

    Args:
        amount: weights or operations; they must grow with the width.
        what: the network, for the message.
        tolerance: largest share by which the amount may be off.
    """
    amount = cache(amount)
    low, high = 8, 16
    while amount(high) <= target and high < 8192:
        low, high = high, 2 * high
    while high - low > multiple:
        middle = (low + high) // (2 * multiple) * multiple
        low, high = (middle, high) if amount(middle) <= target else (low, middle)
    best = min((low, high), key=lambda width: abs(amount(width) - target))
    if abs(amount(best) / target - 1) > tolerance:
        sys.exit(f"{what}: {amount(best):,} are more than {tolerance:.0%} off {target:,}, at every width")
    return best


@cache
def width_of(contender: Contender, data: str, equal: str = "weights") -> int:
    """The even width at which a contender has as many weights as the others, or needs as many operations for a training image."""
    setup = SETUPS[data]
    return equal_width(contender, setup, settings_of(contender, setup) if contender.family else {}, equal)


def equal_width(contender: Contender, setup: Setup, settings: dict[str, Any], equal: str = "weights") -> int:
    """... with given settings."""

    def amount(width: int) -> int:
        module = build(contender, setup, settings, width)
        return weights_of(module) if equal == "weights" else operations_of(module)["train"]

    what = f"{equal} of {contender.peer or f'{contender.family} H={contender.horizon}'}"
    return fit_width(amount, setup.weights * (1 if equal == "weights" else OPERATIONS), what, setup.multiple)


def as_options(settings: dict[str, Any]) -> list[str]:
    """Settings as options of the command line."""
    words = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        words += [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
    return words


# training -----------------------------------------------------------------------------------------------------------

PROPOSALS = {"digits": "digits-proposals", "fashion_mnist": "mnist-proposals", "mnist": "mnist-proposals"}
"""Presets of proposals."""


class Stopped(Exception):
    """A signal ended the training before its time; the same row goes on from there."""


# data and training --------------------------------------------------------------------------------------------------


def splits_of(data: DataConfig, options: Options) -> Splits:
    """The images, the first so many test images among them. A trial is measured on training images that are held out of the
    training and of the choice of a checkpoint, as many as there are test images; the test images are out of its reach."""
    splits = load_data(dataclasses.replace(data, limit=None) if options.trial else data)
    test, train = splits.test, splits.train
    if options.trial:
        order = torch.randperm(len(train), generator=rng.generator(0, "images of trials"))
        count = min(len(test), options.num_test or len(train) // 2)
        test, train = train.subset(order[:count]), train.subset(order[count:][: data.limit])
    return dataclasses.replace(
        splits, train=train, test=test.subset(range(min(options.num_test or len(test), len(test))))
    )


def fit(config: Config, splits: Splits) -> tuple[Model, Row]:
    """Train, or go on, as ``goalgen train`` does. Returns the best model, and how the training went."""
    check_config(config)
    config = complete(config)
    prepare_folder(config)
    outcome = Trainer(config, splits).run()
    if outcome.interrupted:
        raise Stopped
    return load(config.out), {"steps": outcome.step, "seconds": outcome.seconds}


def train_goalgen(
    folder: Path, options: Options, seed: int, settings: Row, preset: str | None = None
) -> tuple[Model, Splits, Row]:
    """The model of some settings, the images, and how it went: steps, seconds and the command that does the same."""
    given = {"data": data_folder(options.data), "seed": seed, "max_seconds": options.seconds}
    config = configure(preset, **settings, **given, out=folder, quiet=True, picture_every=0)
    splits = splits_of(config.data, options)
    model, went = fit(config, splits)
    given["data"] = options.data if options.data == "digits" else f"DATA/{options.data}"
    words = [*(["--preset", preset] if preset else []), *as_options({**settings, **given})]
    return model, splits, {**went, "command": " ".join(["goalgen train", *words])}


def sized(contender: Contender, options: Options) -> Row:
    """Settings of one of goalgen's contenders, widths among them."""
    width = width_of(contender, options.data, options.equal)
    return {**settings_of(contender, SETUPS[options.data]), "width": width, "head_width": max(8, width // 2)}

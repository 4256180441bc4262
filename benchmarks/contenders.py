"""Who is compared: data sets with their setups, goalgen's families with their settings, the peers; and widths that make them
equal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from report import APART, MUON, RESULTS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from goalgen import configure
from goalgen.families import make
from goalgen.family import Family
from goalgen.networks import SIZES, NetworkSpec, default_patch
from goalgen.size import count_operations, count_parameters

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
    equal: str = ""
    num_test: int | None = None
    horizons: tuple[int, ...] = ()
    device: str = "cpu"
    processes: int = 1
    """that train one model together, each with the threads of a row"""
    network: str = "mlp"
    weights: int = 3_000_000
    batch: int = 64
    width: int = 32
    only_train: bool = False
    """train and time, and leave the measuring to another call, perhaps on another machine"""
    measure_on: str = "cpu"
    """where samples are drawn to be measured; what was trained here or elsewhere"""


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
    head: float = 0.5
    """its width over that of the network"""
    operations: int = 1_000_000
    """for a training image of each contender (pass forward), within 5%"""
    equal: Literal["weights", "operations"] = "weights"
    """what all contenders have as many of, where nothing else is asked for"""


DIGITS = Setup(
    (1, 8, 8),
    17,
    250_000,
    {"network": "mlp", "depth": 4, "dropout": 0.1},
    {"batch_size": 64, "ema": 0.9995, "eval_every": 100},
    modes=32,
)
LARGER = Setup(
    (1, 28, 28), 256, 1_500_000, {"network": "unet"},
    {"batch_size": 64, "learning_rate": 4e-3, "ema": 0.999, "eval_every": 1000, "optimizer": "muon"},
    {"iw_images": 2, "iw_k": 2}, modes=2048, head=2.0, operations=44_000_000, equal="operations",
)  # fmt: skip
"""Convolutions, and what `goalgen train` does by itself. The peers have the same batch, rate and average of weights; of the rates 2e-3
and 4e-3, tried for flow matching alone, this was the better for it, too. They are trained with AdamW, as their users do, and with the
same Muon as goalgen."""
AVATARS = replace(LARGER, shape=(3, 16, 16), operations=71_000_000)
PHOTOGRAPHS = replace(LARGER, shape=(3, 32, 32), operations=72_500_000)
SETUPS = {"digits": DIGITS, "fashion_mnist": LARGER, "mnist": LARGER, "avatars": AVATARS, "cifar10": PHOTOGRAPHS}
"""Operations are those of goalgen at its own width and four evaluations."""
ON_GPU = {"cifar10": replace(PHOTOGRAPHS, model={"network": "unet", "depth": 2}, operations=455_000_000,
                             training=LARGER.training | {"batch_size": 256})}  # fmt: skip
"""As `goalgen train` chooses it where there is a GPU."""


def setup_of(data: str, device: str = "cpu") -> Setup:
    """The setup of a data set, on a machine with a GPU perhaps another."""
    return (ON_GPU if device == "cuda" else SETUPS)[data]


OTHER_TEMPERATURE: dict[str, dict[str, float]] = {"digits": {"bridge": 1.5}}
"""Of another sampler that is measured too; at 1 it is the model. Chosen by trials of one or two seeds (of 0.5, 0.7, 0.85, 1, 1.2, 1.5,
2, 3 and 4), on the digits, where latents gained nothing (the VAE was not tried)."""


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
    "reveal": {"environment": "reveal"},
    "reveal, raster": {"environment": "reveal", "reveal_order": "raster"},
    "code, bridge": {"gc_agent": "fixed", "discount": 2.0, "log_snr": (-1.0, 4.0)},
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
    optimizer: str = "adamw"
    """of a peer"""

    @property
    def correlations(self) -> tuple[float, ...]:
        """Of samples: none, which is the model, and of stages 1 too, without noise but the first, as the peers' samplers are."""
        return (0.0, 1.0) if self.family == "code, bridge" else (0.0,)

    @property
    def evaluations(self) -> tuple[int, ...]:
        """Network evaluations at which it is sampled."""
        if self in ONE_BY_ONE.values():
            return ()
        if self.peer not in ("", "VAE"):
            return EVALUATIONS
        if self.family in (
            "fixed bridge",
            "code, bridge",
        ):  # they can leave out steps; after a code the draft alone is one
            return tuple(n for n in EVALUATIONS if n <= self.horizon)
        return (self.horizon,)


PEERS = {
    name: Contender(peer=name)
    for name in ("VAE", "diffusion", "diffusion (x0)", "flow matching", "flow matching (plain)")
}
ONE_BY_ONE = {
    "PixelCNN": Contender(peer="PixelCNN"),
    "goalgen reveal, raster H=784": Contender("reveal, raster", 784),
}
"""A pixel a step, 784 evaluations for a sample: their bounds alone are measured."""
ON_DIGITS = {
    **PEERS,
    "goalgen latent H=1": Contender("latent", 1),
    "goalgen latent H=1, one mode": Contender("latent", 1, modes=False),
    **{f"goalgen latent H={h}": Contender("latent", h) for h in (2, 4, 8)},
    **{f"goalgen proposals H={h}": Contender("proposals", h) for h in (2, 4, 8)},
    **{f"goalgen learned bridge H={h}": Contender("learned bridge", h) for h in (16, 50)},
    "goalgen fixed bridge H=50": Contender("fixed bridge", 50),
}
ON_LARGER = {
    **PEERS,
    **{name + MUON: replace(peer, optimizer="muon") for name, peer in PEERS.items()},
    **{f"goalgen code, bridge H={h}": Contender("code, bridge", h) for h in (4, 2, 8, 16, 50)},
    "goalgen latent H=1": Contender("latent", 1),
    "goalgen proposals H=4": Contender("proposals", 4),
    "goalgen reveal H=16": Contender("reveal", 16),
    "goalgen fixed bridge H=16": Contender("fixed bridge", 16),
    "goalgen learned bridge H=4": Contender("learned bridge", 4),
    **ONE_BY_ONE,
}


def contenders_on(data: str) -> dict[str, Contender]:
    """By name: on larger images convolutional networks, and what suits them; on the digits mlps."""
    return ON_DIGITS if data == "digits" else ON_LARGER


def settings_of(contender: Contender, setup: Setup) -> dict[str, Any]:
    """Settings of one of goalgen's contenders, but for the widths.

    On the digits, for samples, a latent at one step has a policy of several modes (at more of them samples were further from the
    data, and nearer without), and a network that serves the first step alone does not read the mean image that it starts from.
    """
    horizon = contender.horizon
    found = {**FAMILIES[contender.family], **setup.model, **setup.training, "horizon": horizon}
    if contender.family == "code, bridge":  # H network evaluations: the draft, and every canvas of the bridge
        del found["horizon"]
        sizes = {"code_size": 32 * setup.shape[0], "code_modes": setup.modes}
        return {**found, "environment": f"code:1+bridge:{horizon - 1}", **sizes}
    if contender.settled_for == "samples" and contender.family == "latent":
        found["latent_modes"] = setup.modes if contender.modes and horizon == 1 else 1
        if setup.model["network"] == "mlp":
            found["read_start"] = horizon > 1
    return found


def temperatures(data: str, kind: str) -> tuple[float, ...]:
    """At which a family of goalgen's, or a peer, is sampled: 1, which is the model, and perhaps another."""
    return (1.0, *(t for name, t in OTHER_TEMPERATURE.get(data, {}).items() if name in kind))


# equal sizes --------------------------------------------------------------------------------------------------------


def build(contender: Contender, setup: Setup, settings: dict[str, Any], width: int) -> nn.Module:
    """The untrained model of a width: a :class:`goalgen.Family` or a peer."""
    if contender.family:
        return make(configure(**{**settings, **sizes(setup, width)}), setup.shape, setup.levels)
    from peers import make_peer

    return make_peer(contender.peer, spec_of(setup, width), setup.levels)


def sizes(setup: Setup, width: int) -> dict[str, int]:
    """Widths of a network and of its head."""
    return {"width": width, "head_width": max(8, round(width * setup.head))}


def spec_of(setup: Setup, width: int) -> NetworkSpec:
    """A peer's network: of the kind, depth and dropout that goalgen's have on these data."""
    model = configure(**setup.model).model
    return NetworkSpec(
        model.network,
        setup.shape,
        1,
        width,
        model.depth or SIZES[model.network][1],
        sizes(setup, width)["head_width"],
        model.dropout,
        model.patch or default_patch(*setup.shape[1:]),
    )


def weights_of(module: nn.Module) -> int:
    """All weights, those of the GC-agent counted."""
    if isinstance(module, Family):
        return sum(count_parameters(module).values())
    return sum(p.numel() for p in module.parameters())


def operations_of(module: nn.Module) -> dict[str, int]:
    """Floating-point operations to draw an image (a peer's: of one evaluation, or of a pixel each) and to learn from one, as
    :func:`goalgen.size.count_operations` counts them."""
    if isinstance(module, Family):
        return count_operations(module)
    image, generator = torch.zeros(1, *module.shape), torch.Generator().manual_seed(0)
    with torch.no_grad(), FlopCounterMode(display=False) as train:
        module.loss(image, generator, 0)
    each = train.get_total_flops()
    if not module.can_draw(module.samplers[0], 1):  # a pixel at a time
        return {"sample": each * image[0].numel(), "train": each}
    with torch.no_grad(), FlopCounterMode(display=False) as sample:
        module.draw(module.samplers[0], 1, image, generator)
    return {"sample": sample.get_total_flops(), "train": each}


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
def width_of(contender: Contender, data: str, equal: str = "", device: str = "cpu") -> int:
    """The even width at which a contender has as many weights as the others, or needs as many operations for a training image."""
    setup = setup_of(data, device)
    return equal_width(contender, setup, settings_of(contender, setup) if contender.family else {}, equal)


def equal_width(contender: Contender, setup: Setup, settings: dict[str, Any], equal: str = "") -> int:
    """... with given settings."""
    equal = equal or setup.equal

    def amount(width: int) -> int:
        module = build(contender, setup, settings, width)
        return weights_of(module) if equal == "weights" else operations_of(module)["train"]

    what = f"{equal} of {contender.peer or f'{contender.family} H={contender.horizon}'}"
    return fit_width(amount, setup.weights if equal == "weights" else setup.operations, what, setup.multiple)


def sized(contender: Contender, options: Options) -> Row:
    """Settings of one of goalgen's contenders, widths among them."""
    width = width_of(contender, options.data, options.equal, options.device)
    setup = setup_of(options.data, options.device)
    return {**settings_of(contender, setup), **sizes(setup, width)}


def as_options(settings: dict[str, Any]) -> list[str]:
    """Settings as options of the command line."""
    words = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


PROPOSALS = {"digits": "digits-proposals", "fashion_mnist": "mnist-proposals", "mnist": "mnist-proposals"}
"""Presets of proposals."""

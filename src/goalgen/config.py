"""One typed configuration: the Python API, the command line's --help and the JSON saved with a run.

Field docstrings are what ``goalgen train --help`` prints. A preset is a TOML file in
``goalgen/presets`` that overrides some of the defaults below.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from goalgen.errors import GoalgenError

FORMAT = 1
"""Version of the saved configuration; raised when an old file can no longer be read as it is."""


@dataclass(frozen=True)
class DataConfig:
    """Where the goals come from."""

    data: str = "digits"
    """Goals: "digits" (embedded, 8x8), a folder of images, a parquet file or a folder of them, or a Hugging Face
    hub name such as "ylecun/mnist"."""
    image_size: tuple[int, int] | None = None
    """Height and width that images are resized to; unset keeps their own size (all must then agree)."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How an image of another aspect ratio meets --image-size: cut the long side, add background, or distort."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for RGB; unset keeps grey when every image is grey, RGB otherwise."""
    background: str = "white"
    """Colour behind transparent pixels and padding: a name or #rrggbb."""
    corrupt: Literal["skip", "refuse"] = "skip"
    """What to do with unreadable images: name and skip them, or stop."""
    validation_fraction: float = 0.05
    """Share of the training images held out to pick the best checkpoint (at least 1, at most 2,000 images)."""
    test_fraction: float = 0.15
    """Share held out for `goalgen evaluate` where the data have no test split of their own."""
    limit: int | None = None
    """Use at most this many training images (the first ones in a fixed random order)."""
    binarize: bool = False
    """Black-and-white goals drawn from the grey levels: anew each epoch in training, once with a fixed seed for test."""


@dataclass(frozen=True)
class ModelConfig:
    """The environment and the two agents."""

    environment: str = "auto"
    """World in which images are built; auto: the one that --gc-agent acts in, latent if that is auto too. latent (a Gaussian latent decides what is added; at --horizon 1 a variational
    autoencoder), proposals (choose among images to add) or bridge (the action is the next canvas, through ever less noise)."""
    horizon: int = 10
    """H, the number of steps of an episode."""
    start: str = "mean"
    """Initial state: mean, constant[:LEVEL 0..1], noise[:STD], an image file, a folder of images (paired by name with
    the goals, or sampled), or a function of the goal: grey, blur[:SIGMA], downsample[:FACTOR], mask[:FRACTION], edges."""
    gc_agent: str = "auto"
    """How the GC-agent acts. proposals: greedy, posterior (one-step lookahead, the default) or value (soft value learning);
    latent: encoder; bridge: learned (the default) or fixed (Gaussian diffusion)."""
    condition: Literal["none", "label"] = "none"
    """What both agents are told besides the canvas: nothing, or the image's label."""
    num_proposals: int = 32
    """A, the number of proposals at every step."""
    grid: int = 1
    """Independent choices: each of GRID x GRID cells of the canvas chooses its own proposal."""
    step_size: float | None = None
    """proposals, latent: alpha_h in x + alpha_h * y, the same at every step unless --learn-step-size is set; unset: 0.3 for
    proposals, 1 for latent."""
    learn_step_size: bool = False
    """Learn alpha_h, one for every step, starting from --step-size."""
    latent_size: int = 16
    """latent: numbers in a latent."""
    latent_modes: int = 1
    """latent: Gaussians that the S-agent's policy mixes at every step, so that it may have gaps where no image is."""
    latent_map: bool = True
    """latent: one latent at every position of the network's coarsest map, rather than one for the image (an mlp has
    one position)."""
    share_steps: bool = True
    """latent: one network, told the step, rather than one for every step."""
    read_start: bool = True
    """latent: the networks of the first step look at the canvas. Not worth their weights where every episode begins from the
    same image; they can do without if they are mlps that serve no other step."""
    log_snr: tuple[float, float] = (-3.0, 5.0)
    """bridge: logarithm of the signal-to-noise ratio after the first step and after the last (their middle, if there is
    only one)."""
    learn_snr: bool = True
    """bridge: learn the signal-to-noise ratios, starting from even steps between the two of --log-snr."""
    learn_variance: bool | None = None
    """bridge: the S-agent learns mean and variance of every pixel of its action; unset: when the GC-agent is learned."""
    recompute: bool = False
    """latent: keep only the canvases of an episode and compute each step again for its gradient: memory that hardly grows
    with the horizon, for a third more time."""
    network: Literal["mlp", "unet", "transformer"] = "mlp"
    """The agents' network: mlp (up to about 16x16), unet (convolutions) or transformer (over patches)."""
    width: int = 256
    """Units of an mlp layer, channels of the U-Net's finest map, or numbers in a transformer's token."""
    depth: int = 2
    """Residual blocks of an mlp or a transformer; blocks at every size of a U-Net."""
    head_width: int = 128
    """Units (mlp) or channels of a position (unet, transformer) from which images are drawn."""
    patch: int = 4
    """unet, transformer: side of the square of pixels that becomes one position of the finest map."""
    dropout: float = 0.0
    """Dropout inside the S-agent's network."""
    likelihood: Literal["auto", "logistic", "bernoulli"] = "auto"
    """p(g | x_H): discretised logistic over the grey levels, or Bernoulli; auto is Bernoulli for --binarize."""


@dataclass(frozen=True)
class TrainingConfig:
    """The training loop."""

    batch_size: int = 32
    """Goals in one optimiser step, over all processes together."""
    episodes_per_goal: int | None = None
    """Episodes of every goal in a batch (the batch holds BATCH_SIZE / EPISODES_PER_GOAL goals); unset: 4 for the value
    agent, which learns from what differs between them, 1 for the others."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.01
    """AdamW weight decay, on matrices only."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises to its peak."""
    decay: Literal["linear", "cosine", "none"] = "linear"
    """How the learning rate falls over the run: over --max-steps, or over --max-seconds where no steps are given."""
    kl_warmup_steps: int | None = None
    """latent: steps over which the weight of the KL in the loss rises from 0 to 1, so that every step finds a use for its
    latent before it has to pay for it; unset: 500, or two fifths of the run if that is less."""
    clip_norm: float = 50.0
    """Largest norm of the gradient, in nats."""
    ema: float = 0.998
    """Decay of the exponential moving average of the weights (warmed up, so that early averages forget quickly)."""
    max_steps: int | None = None
    """Stop after this many optimiser steps. Only then does a resumed run end with the very same weights: the learning rate
    is a function of the step, not of the clock."""
    max_seconds: float | None = None
    """Stop after this many seconds of training, counted over all restarts; 600 where neither limit is given."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """Mixed precision of the networks; the bound itself is always float32. auto: bf16 where it is faster, that is on GPUs
    that support it, and on CPUs that do for a million weights or more."""
    backprop: Literal["chosen", "full"] = "chosen"
    """Path of the gradient to the first step: "chosen" through the sum of chosen proposals; "full" also through what
    the networks see of the canvases (the exact gradient; slower, noisier)."""
    chain_dropout: float = 0.0
    """Chance that a step takes a random action while training, so that the agents see states off their policy."""
    revive_every: int = 500
    """Steps between revivals of proposals that are never chosen (0: never)."""
    revive_below: float = 0.05
    """A proposal is dead when chosen less often than this fraction of an equal share."""
    augment: bool = False
    """Shift training images by up to one pixel in each direction."""
    eval_every: int = 200
    """Steps between measurements of the bound on held-out goals; the best weights so far are kept."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    checkpoint_seconds: float = 60.0
    """... and at most this many seconds of training between checkpoints."""
    keep: int = 2
    """Checkpoints kept besides the best."""
    picture_every: int = 1000
    """Steps between pictures of samples and trajectories (0: only at the end)."""
    log_every: int = 20
    """Steps between records in log.jsonl."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the package tensorboard)."""
    quiet: bool = False
    """No progress bar, even on a terminal."""


@dataclass(frozen=True)
class Config:
    """Everything that determines a run."""

    out: Path = Path("runs/goalgen")
    """Folder of the run: configuration, log, checkpoints and pictures. The same command again resumes."""
    seed: int = 0
    """Seed from which all randomness is derived."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))


T = TypeVar("T")


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as plain JSON values, with its format version."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Path):
            return value.as_posix()
        return list(value) if isinstance(value, tuple) else value

    return {"format": FORMAT, **plain(config)}


def from_dict(values: dict[str, Any], base: Config | None = None, source: str = "configuration") -> Config:
    """Return ``base`` (the defaults, if none is given) with ``values`` laid over it.

    Raises:
        GoalgenError: a key that does not exist, a value of the wrong type, or a newer format.
    """
    if not isinstance(values, dict):
        raise GoalgenError(f"{source}: expected a table of settings, found {type(values).__name__}")
    values = dict(values)
    version = values.pop("format", FORMAT)
    if version != FORMAT:
        raise GoalgenError(f"{source}: format {version!r} is not known to this goalgen (it reads {FORMAT}); upgrade it")
    return _overlay(base or Config(), values, source)


def _overlay(base: T, values: dict[str, Any], source: str) -> T:
    hints = typing.get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(hints)}"
            raise GoalgenError(f"{source}: no setting is called {key!r}{hint}")
        old = getattr(base, key)
        if dataclasses.is_dataclass(old) and not isinstance(old, type):
            if not isinstance(value, dict):
                raise GoalgenError(f"{source}: {key!r} is a table of settings, not {value!r}")
            changes[key] = _overlay(old, value, source)
        else:
            changes[key] = _coerce(value, hints[key], f"{source}: {key}")
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` as ``hint`` (a type in a field annotation above), or raise."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _coerce(value, next(a for a in args if a is not type(None)), where)
    if origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
        raise GoalgenError(f"{where} must be one of {', '.join(map(str, args))}, not {value!r}")
    if origin is tuple:
        if isinstance(value, (list, tuple)) and len(value) == len(args):
            return tuple(_coerce(v, a, where) for v, a in zip(value, args, strict=True))
        raise GoalgenError(f"{where} must be {len(args)} values, not {value!r}")
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise GoalgenError(f"{where} must be {getattr(hint, '__name__', hint)}, not {value!r}")


def save_config(config: Config, path: Path) -> None:
    """Write ``config`` as JSON (callers make the write atomic)."""
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")


def load_config(path: Path) -> Config:
    """Read a configuration written by :func:`save_config`.

    Raises:
        GoalgenError: the file is missing, is not JSON, or holds settings that do not exist.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GoalgenError(f"{path} does not exist; is its folder a goalgen run?") from None
    except (OSError, ValueError) as error:
        raise GoalgenError(f"{path} cannot be read as a configuration: {error}") from None
    return from_dict(values, source=str(path))


def preset_names() -> list[str]:
    """Return the names that ``--preset`` takes."""
    folder = resources.files("goalgen") / "presets"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def load_preset(name: str) -> Config:
    """Return the configuration of a preset: the defaults with the file's settings laid over them.

    Raises:
        GoalgenError: no preset has this name.
    """
    if name not in preset_names():
        raise GoalgenError(f"no preset is called {name!r}; there are: {', '.join(preset_names())}")
    text = (resources.files("goalgen") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return from_dict(tomllib.loads(text), source=f"preset {name}")

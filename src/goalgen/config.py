"""One typed configuration. Field docstrings are what ``goalgen train --help`` prints.

The settings of a family stand with the family; :mod:`goalgen.settings` reads and writes all of them by their names.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal


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
    data_cache: Literal["auto", "memory", "disk"] = "auto"
    """Where decoded images are kept: in memory, or in a file that is mapped into it (see GOALGEN_CACHE); auto: on disk if they
    would fill more than a quarter of the free memory."""
    binarize: bool = False
    """Black-and-white goals drawn from the grey levels: anew each epoch in training, once with a fixed seed for test."""


@dataclass(frozen=True)
class ModelConfig:
    """The environment and the two agents."""

    environment: str = "auto"
    """The kind of model: a family, see the groups of options below; auto: the one that --gc-agent acts in, or the first."""
    horizon: int | None = None
    """H, the number of steps of an episode; unset: 10."""
    start: str = "mean"
    """Initial state: mean, constant[:LEVEL 0..1], noise[:STD], an image file, a folder of images (paired by name with
    the goals, or sampled), or a function of the goal: grey, blur[:SIGMA], downsample[:FACTOR], mask[:FRACTION], edges."""
    gc_agent: str = "auto"
    """How the GC-agent acts: one of those that the family names below; auto: the first of them."""
    condition: Literal["none", "label"] = "none"
    """What both agents are told besides the canvas: nothing, or the image's label."""
    network: Literal["auto", "mlp", "unet", "transformer"] = "auto"
    """The agents' network: mlp (up to about 16x16), unet (convolutions) or transformer (over patches). auto: an mlp; where
    family and GC-agent are auto too, all three and what suits them are chosen by the images."""
    width: int | None = None
    """Units of an mlp layer, channels of the U-Net's finest map, or numbers in a transformer's token; unset: 256, 32, 128."""
    depth: int | None = None
    """Residual blocks of an mlp or a transformer; blocks at every size of a U-Net; unset: 2, 4, 1."""
    head_width: int | None = None
    """Units (mlp) or channels of a position (unet, transformer) from which images are drawn; unset: 128, 64, 64."""
    patch: int | None = None
    """unet, transformer: side of the square of pixels that becomes one position of the finest map; unset: the least that makes
    that map at most 16 positions wide and high."""
    dropout: float = 0.0
    """Dropout inside the S-agent's network."""


@dataclass(frozen=True)
class TrainingConfig:
    """The training loop."""

    batch_size: int | None = None
    """Goals in one optimiser step, over all processes together; unset: 32."""
    episodes_per_goal: int | None = None
    """Episodes of every goal in a batch (the batch holds BATCH_SIZE / EPISODES_PER_GOAL goals); unset: 4 for the value
    agent, which learns from what differs between them, 1 for the others."""
    optimizer: Literal["adamw", "muon"] | None = None
    """muon: as AdamW, but that the weights of linear and convolutional layers move by orthogonal matrices; unset: adamw."""
    learning_rate: float | None = None
    """Peak learning rate, unset: 3e-3; parameters of a GC-agent that learn faster or slower do so in proportion to it."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on the weights of linear and convolutional layers only."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises to its peak."""
    decay: Literal["linear", "cosine", "none"] = "linear"
    """How the learning rate falls over the run: over --max-steps, or over --max-seconds where no steps are given."""
    clip_norm: float = 50.0
    """Largest norm of the gradient, in nats."""
    ema: float | None = None
    """Decay of the exponential moving average of the weights (warmed up, so that early averages forget quickly); unset:
    0.998."""
    max_steps: int | None = None
    """Stop after this many optimiser steps. Only then does a resumed run end with the very same weights: the learning rate
    is a function of the step, not of the clock."""
    epochs: float | None = None
    """Stop after this many passes over the training images: --max-steps in other words."""
    max_seconds: float | None = None
    """Stop after this many seconds of training, measurements and pictures included, counted over all restarts; 600 where neither
    limit is given."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto: a GPU if there is one."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """Mixed precision of the networks; the bound itself is always float32. auto: bf16 where it is faster, that is on GPUs
    that support it, and on CPUs that do for a million weights or more."""
    compile: bool = False
    """Compile the networks (torch.compile): the first steps take a minute, the others less time where launching kernels is what
    takes it, that is for small networks on a GPU. Needs a C++ compiler; a resumed run is then the same but for rounding."""
    augment: bool = False
    """Shift training images by up to one pixel in each direction."""
    flip: bool = False
    """Mirror training images, each with a chance of one half, left to right; for what looks as well mirrored."""
    eval_every: int = 200
    """Steps between measurements of the bound on held-out goals; the best weights so far are kept."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    checkpoint_seconds: float = 60.0
    """... and at most this many seconds of training between checkpoints."""
    keep: int = 2
    """Checkpoints kept besides the best."""
    picture_every: int | None = None
    """Steps between pictures of samples and trajectories (0: only at the end); unset: after 15 s, 30 s, 1 min, 2 min and so on."""
    log_every: int = 20
    """Steps between records in log.jsonl."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the package tensorboard)."""
    quiet: bool = False
    """Say nothing while training: no bar, and no line every half minute."""

    def plain(self) -> TrainingConfig:
        """The same with values for what is unset."""
        values: dict[str, Any] = {"batch_size": 32, "optimizer": "adamw", "learning_rate": 3e-3, "ema": 0.998}
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})


@dataclass(frozen=True)
class Settings:
    """Settings of a family: a frozen dataclass of its own. Every field has a default, and a docstring for --help."""


def of_training(default: Any) -> Any:
    """A field of :class:`Settings` that stands among the settings of training in files, rather than those of the model."""
    return field(default=default, metadata={"table": "training"})


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
    family: Any = None
    """The family's own settings, such as LatentSettings; unset: its defaults."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))


@dataclass(frozen=True)
class Measurement:
    """How a model is measured."""

    num_samples: int | None = None
    """Samples to draw; unset: as many as there are test images, at most 10,000; never more than there are test images,
    as a metric and its reference must be of equally many."""
    num_test: int | None = None
    """Measure on the first so many test images; unset: all."""
    seed: int = 0
    """Seed of samples and noise."""
    iw_k: int = 16
    """K, trajectories an image for the tighter bound (equation 4)."""
    iw_images: int = 500
    """Test images that the tighter bound is computed on (the first ones); it costs K rollouts each."""
    features: str = "auto"
    """Feature space: auto, classifier, pixel-pca or inception."""
    start: str | None = None
    """Another initial state than the one trained with."""
    temperature: float = 1.0
    """Of the samples; below 1 keeps to likelier actions."""
    steps: int | None = None
    """Actions of a sample, where the model can skip steps (fixed bridge)."""
    correlation: float = 0.0
    """Of the samples of a bridge: share of the noise of an action that is taken from the canvas; 0 is the model, 1 DDIM."""
    draw_pixels: bool = False
    """Draw the pixels of a sample from the likelihood, rather than round its last canvas."""
    quick: bool = False
    """A first answer within some 20 seconds: as few test images, samples and trajectories as that takes, and, unless told otherwise,
    features that need no training. Its numbers compare with other quick ones only roughly."""
    quiet: bool = False
    """Say nothing while measuring: no bar, and no line every half minute."""

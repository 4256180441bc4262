"""The options of every command, as dataclasses whose docstrings are their help."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from goalgen.config import Measurement
from goalgen.errors import GoalgenError


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where."""

    model: tyro.conf.Positional[str]
    """Folder of a run or of a saved model, a model of the zoo such as zoo:digits, or a hub name."""
    weights: str = "ema"
    """Which weights of a run: ema (averaged) or raw."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, mps."""

    def load(self) -> Any:
        """The model that they name.

        Raises:
            GoalgenError: there is none, or no such device.
        """
        from goalgen.model import load
        from goalgen.saved import check_device

        if self.weights not in ("ema", "raw"):
            raise GoalgenError(f"--weights must be ema or raw, not {self.weights!r}")
        return load(self.model, weights=self.weights, device=check_device(self.device))  # type: ignore[arg-type]


def data_of(model: Any, option: str) -> Any:
    """Where the images are that a model was made from, a :class:`goalgen.DataConfig`.

    Raises:
        GoalgenError: they are not there any more; ``option`` is the one that says where they are now.
    """
    source = model.config.data
    if Path(source.data).is_absolute() and not Path(source.data).exists():
        raise GoalgenError(
            f"{source.data} is not there any more, and the model was made from the images in it; say with {option} where they are "
            "now"
        )
    return source


@dataclass(frozen=True)
class SampleOptions(ModelOptions):
    """Draw new images with the S-agent alone."""

    out: Path = Path("samples")
    """Folder for the PNGs: a new one, or an empty one."""
    force: bool = False
    """Replace the samples that the folder holds; files that goalgen did not write are never touched."""
    num: int = 64
    """Number of images."""
    seed: int = 0
    """Image i depends on (seed, i) only, however many are drawn."""
    first: int = 0
    """Index i of the first image."""
    start: str | None = None
    """Another initial state than the one trained with (see `goalgen train --help`)."""
    start_goals: str | None = None
    """Images, as --data, for a start that is a function of the goal; unset: the test images of the run's data."""
    temperature: float = 1.0
    """Below 1 keeps to likelier actions."""
    steps: int | None = None
    """Actions to take, where the model can skip steps (fixed bridge); unset: all it was trained with."""
    label: str | None = None
    """Class of all images, by name or number (see `goalgen show`), for a model trained with --condition label; unset: the
    classes in turn."""
    correlation: float = 0.0
    """Of a bridge: share of the noise of an action that is taken from the canvas rather than drawn; 0 is the model, 1 DDIM."""
    draw_pixels: bool = False
    """Draw every pixel from p(g | x_H), as the model of the bound does, rather than round the last canvas."""
    grid: bool = False
    """Also write grid.png, all images in one (of more than 1,024 the first)."""
    trajectory: bool = False
    """Also write trajectories.png (film strip of the first 8) and trajectories.gif (the first 64)."""
    svg: bool = False
    """Also write every image as SVG, and as SVG that draws itself (NUMBER.drawing.svg), where the model draws
    strokes; with --grid all in one, too (grid.svg)."""


@dataclass(frozen=True)
class VectorizeOptions(ModelOptions):
    """Paint given images with the GC-agent of a model that draws strokes, as SVG."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Image files, or folders of them, of any size; the model sees them at its own."""
    out: Path = Path("drawings")
    """Folder for the SVGs, each called as its image and of its aspect ratio, and for what they look like at the model's size (PNG): a
    new one, or an empty one."""
    force: bool = False
    """Replace the drawings that the folder holds; files that goalgen did not write are never touched."""
    budget: int | None = None
    """Strokes of a drawing at most; unset: as many as the model was trained with."""
    tries: int = 1
    """Paint each image so many times, and keep the drawing that is nearest to it."""
    search: int = 0
    """At every step draw the best of so many strokes that the GC-agent proposes, by what it has learned they are worth; 0: the
    GC-agent alone."""
    fit: Literal["crop", "pad", "stretch"] = "pad"
    """How an image of another aspect ratio meets the model's: cut the long side, add background, or distort (the SVG is stretched
    back). The SVG shows what is left of the image, without what was added."""
    background: str | None = None
    """Colour behind transparent pixels and padding, a name or #rrggbb; unset: white, and padding continues the image's edge."""
    invert: Literal["auto", "yes", "no"] = "auto"
    """Paint the negative, such as of dark writing on white for a model of bright strokes on black, and turn the drawing back; auto:
    where the edge of the image is nearer to the negative of the blank canvas."""
    start: str | None = None
    """Another initial state than the one trained with."""
    seed: int = 0
    """Seed of the strokes."""


@dataclass(frozen=True)
class RestoreOptions(ModelOptions):
    """Restore damaged images with a model that was trained to, such as with --start downsample:4 or --start mask:0.5."""

    files: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Damaged image files, or folders of them, of any size and mode: resized to the model's images, and back."""
    out: Path = Path("restored")
    """Folder for the restorations, PNGs called as their files: a new one, or an empty one."""
    force: bool = False
    """Replace the restorations that the folder holds; files that goalgen did not write are never touched."""
    num: int = 1
    """Draws of each file. Of several, NAME.png is the first, NAME.2.png the second and so on, NAME.mean.png their mean and
    NAME.spread.png their standard deviation: black where they agree."""
    seed: int = 0
    """Draw j of a file depends on the seed, on the image and on j only."""
    mask: str | None = None
    """What is missing, for a model that fills that in: a picture of the size of the files, white where a pixel is missing and
    black where it is known and kept; or "middle", the rectangle that the model was trained with. Unset: what is transparent."""
    truth: Path | None = None
    """Folder of the undamaged images under the same names: PSNR and SSIM are measured, and the truth is written beside as
    NAME.truth.png."""
    label: str | None = None
    """Class of all files, by name or number (see `goalgen show`), for a model trained with --condition label."""
    temperature: float = 1.0
    """Below 1 keeps to likelier actions."""
    steps: int | None = None
    """Actions to take, where the model can skip steps (fixed bridge); unset: all it was trained with."""


@dataclass(frozen=True)
class EvaluateOptions(ModelOptions):
    """Measure a model on held-out images."""

    json: Path | None = None
    """File for the numbers: a new one."""
    force: bool = False
    """Replace the numbers of an earlier evaluation in that file."""
    data: str | None = None
    """Data to measure on; unset: those of the run."""
    how: Measurement = dataclasses.field(default_factory=Measurement)


@dataclass(frozen=True)
class ShowOptions:
    """Say what a model is: its kind, its data, its classes."""

    model: tyro.conf.Positional[str]
    """Folder of a run or of a saved model, a model of the zoo such as zoo:digits, or a hub name."""


@dataclass(frozen=True)
class PlotOptions:
    """Draw learning curves, KL by step, action usage, trajectories and nearest training neighbours."""

    model: tyro.conf.Positional[Path]
    """Folder of a run."""
    out: Path | None = None
    """Folder for the pictures, a new one or an empty one; unset: plots/ in the run, whose pictures are replaced."""
    force: bool = False
    """Replace the pictures of an earlier plot in the folder."""
    seed: int = 0
    """Seed of the samples shown."""


@dataclass(frozen=True)
class DemoOptions:
    """Train on the digits, sample, evaluate, and say where the pictures are."""

    out: Path = Path("runs/demo")
    """Folder of the run."""
    max_seconds: float = 120.0
    """Seconds of training."""
    seed: int = 0
    """Seed of everything."""
    quiet: bool = False
    """No progress bar."""

"""The options of every command, as dataclasses whose docstrings are their help, and how arguments become one."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import re
import textwrap
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from goalgen.config import Config, Measurement
from goalgen.errors import GoalgenError

T = TypeVar("T")


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where."""

    model: tyro.conf.Positional[str]
    """Folder of a run or of a saved model, a model of the zoo such as zoo:digits, or a hub name."""
    weights: str = "ema"
    """Which weights of a run: ema (averaged) or raw."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, mps."""


@dataclass(frozen=True)
class SampleOptions(ModelOptions):
    """Draw new images with the S-agent alone."""

    out: Path = Path("samples")
    """Folder for the PNGs."""
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
    label: int | None = None
    """Class of all images, for a model trained with --condition label; unset: the classes in turn."""
    correlation: float = 0.0
    """Of a bridge: share of the noise of an action that is taken from the canvas rather than drawn; 0 is the model, 1 DDIM."""
    draw_pixels: bool = False
    """Draw every pixel from p(g | x_H), as the model of the bound does, rather than round the last canvas."""
    grid: bool = False
    """Also write grid.png, all images in one."""
    trajectory: bool = False
    """Also write trajectories.png (film strip) and trajectories.gif."""
    svg: bool = False
    """Also write every image as SVG, and as SVG that draws itself (NUMBER.drawing.svg), where the model draws strokes."""


@dataclass(frozen=True)
class VectorizeOptions(ModelOptions):
    """Paint given images with the GC-agent of a model that draws strokes, as SVG."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Image files, or folders of them; they are resized to those of the model."""
    out: Path = Path("drawings")
    """Folder for the SVGs, each called as its image, and for what they look like at the model's size (PNG)."""
    budget: int | None = None
    """Strokes of a drawing at most; unset: as many as the model was trained with."""
    fit: Literal["crop", "pad", "stretch"] = "pad"
    """How an image of another aspect ratio is resized: cut the long side, add background, or distort."""
    background: str = "white"
    """Colour behind transparent pixels and padding, a name or #rrggbb."""
    invert: bool = False
    """Take the negative of the images, such as dark writing on white for a model of bright strokes on black."""
    start: str | None = None
    """Another initial state than the one trained with."""
    seed: int = 0
    """Seed of the strokes."""


@dataclass(frozen=True)
class EvaluateOptions(ModelOptions):
    """Measure a model on held-out images."""

    json: Path | None = None
    """File for the numbers."""
    data: str | None = None
    """Data to measure on; unset: those of the run."""
    how: Measurement = dataclasses.field(default_factory=Measurement)


@dataclass(frozen=True)
class PlotOptions:
    """Draw learning curves, KL by step, action usage, trajectories and nearest training neighbours."""

    model: tyro.conf.Positional[Path]
    """Folder of a run."""
    out: Path | None = None
    """Folder for the pictures; unset: plots/ in the run."""
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


def parse(kind: type[T], command: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Read command-line arguments into a dataclass; what cannot be read becomes one line.

    Raises:
        GoalgenError: an unknown option or a value of the wrong type.
        SystemExit: after --help.
    """
    errors = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                kind, prog=f"goalgen {command}", args=list(arguments), config=(tyro.conf.OmitArgPrefixes,), **options
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    raise GoalgenError(f"{_one_line(errors.getvalue())} (see goalgen {command} --help)")


def _one_line(message: str) -> str:
    """What tyro says, without the titled box over several lines that it draws around it, or its ASCII stand-in."""
    text = re.sub(r"\x1b\[[0-9;]*m|\[/?bold\]", "", message)
    text = re.sub(r"[╭╮╰╯│─]+|[-+]{3,}|^\||\|$", " ", text, flags=re.MULTILINE)
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and re.fullmatch(r"\w+ \w+", lines[0]):
        lines = lines[1:]  # the title
    return re.sub(r"(Argument helptext:|For full helptext).*", "", " ".join(lines)).strip()


def parse_config(arguments: Sequence[str], preset: Config | None) -> Config:
    """The configuration that the arguments of ``goalgen train`` ask for.

    Only what differs from the preset (or the defaults) counts as said, so that what a preset says of its family is no
    fault of whoever chooses another.

    Raises:
        GoalgenError: an unknown option, a value of the wrong type, or a setting of another family.
    """
    from goalgen.settings import from_dict, table_of

    before = preset or Config()
    default, tables = _train_options(before)
    asked = parse(type(default), "train", arguments, default)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(default):
        old, new = getattr(default, item.name), getattr(asked, item.name)
        if not dataclasses.is_dataclass(old):
            values |= {item.name: new} if new != old else {}
            continue
        for setting in dataclasses.fields(old):
            value = getattr(new, setting.name)
            if value != getattr(old, setting.name):
                table = item.name if item.name in tables else table_of(setting)
                values.setdefault(table, {})[setting.name] = value
    return from_dict(values, before, "goalgen train")


def _train_options(config: Config) -> tuple[Any, set[str]]:
    """The options of ``goalgen train`` with their defaults, grouped by family; and the groups that every model has."""
    from goalgen.families import families
    from goalgen.settings import TABLES, owners

    groups: dict[str, list[Any]] = {}
    titles: dict[str, str] = {}
    for family in families().values():
        hints, described = typing.get_type_hints(family.Settings), describe(family.Settings)
        current = config.family if isinstance(config.family, family.Settings) else family.Settings()
        for setting in dataclasses.fields(family.Settings):
            homes = owners(setting.name)
            if homes[0] is not family:
                continue
            name = "_".join(home.name for home in homes)
            titles[name] = f"--environment {' or '.join(home.name for home in homes)}"
            titles[name] += f": {inspect.getdoc(family.Settings)}" if len(homes) == 1 else ""
            kind: Any = Annotated[hints[setting.name], tyro.conf.arg(help=described.get(setting.name))]
            shared = getattr(config.family, setting.name, getattr(current, setting.name))
            value = dataclasses.field(default=shared, metadata=setting.metadata)
            groups.setdefault(name, []).append((setting.name, kind, value))
    fields: list[Any] = []
    help_of = describe(type(config))
    for item in dataclasses.fields(config):
        if item.name != "family":
            hint = typing.get_type_hints(type(config))[item.name]
            kind = hint if item.name in TABLES else Annotated[hint, tyro.conf.arg(help=help_of[item.name])]
            fields.append((item.name, kind, dataclasses.field(default=getattr(config, item.name))))
    for name, settings in groups.items():
        group = dataclasses.make_dataclass(name, settings, frozen=True, namespace={"__doc__": titles[name]})
        fields.append((name, group, dataclasses.field(default=group())))
    doc = {"__doc__": "Train, or resume, the run that these settings describe."}
    return dataclasses.make_dataclass("Train", fields, frozen=True, namespace=doc)(), set(TABLES)


def describe(settings: type) -> dict[str, str]:
    """The docstring below every field of a dataclass; none where its source is not at hand."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    found, before = {}, ""
    for node in tree.body if isinstance(tree, ast.ClassDef) else []:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            before = node.target.id
        elif before and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[before] = inspect.cleandoc(str(node.value.value))
    return found

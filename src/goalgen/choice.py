"""What is trained where nobody has said: what suits the data is filled in, and what it buys is said."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from goalgen.config import Config, ModelConfig, TrainingConfig
from goalgen.data import Splits
from goalgen.families import settings_of
from goalgen.families.suited import suited
from goalgen.settings import configure, to_dict


def is_open(config: Config) -> bool:
    """Whether a configuration leaves it to the data what is trained: it says nothing of family or network."""
    model, settings = config.model, settings_of(config)
    return (model.environment, model.gc_agent, model.network) == ("auto",) * 3 and settings == type(settings)()


def choose(config: Config, data: Splits, gpu: bool) -> tuple[Config, list[str]]:
    """The configuration with what was left open filled in, and lines that say what was chosen and why.

    Whatever the user has said stands: a setting is filled in only where it is at its default.
    """
    wanted, why = suited(data.train.shape, len(data.train), gpu, count_colours(data))
    chosen: dict[str, Any] = {}
    for name, value in wanted.items():
        kind = next((k for k in (ModelConfig, TrainingConfig) if name in k.__dataclass_fields__), None)
        said = None if kind is None else getattr(config.model if kind is ModelConfig else config.training, name)
        if kind is None or said == kind.__dataclass_fields__[name].default:
            chosen[name] = value
    before = to_dict(config)
    tables = {k: v for table in ("data", "model", "training") for k, v in before[table].items()}
    known = {f.name for c in (config.data, config.model, config.training) for f in dataclasses.fields(c)}
    filled = configure(**{k: v for k, v in tables.items() if k in known} | chosen, out=config.out, seed=config.seed)
    numbers = " ".join(f"--{name.replace('_', '-')} {words(value)}" for name, value in chosen.items())
    channels, height, width = data.train.shape
    about = f"{len(data.train):,} {'colour' if channels == 3 else 'grey'} images of {height}x{width}: {why}"
    return filled, [about, f"chosen, and written into the run's configuration: {numbers}"]


FIRST = 64
"""Images whose colours are counted."""


def count_colours(data: Splits) -> int:
    """Colours of an image, the median of the first ones."""
    images = data.train.subset(range(min(FIRST, len(data.train)))).images
    return statistics.median_low([len(image.flatten(1).unique(dim=1).T) for image in images])


def words(value: Any) -> str:
    """A setting's value as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def worth(images: int, images_per_second: float, seconds: float) -> str:
    """How many epochs the time buys, as a line; with what to change where that is less than one."""
    epochs = images_per_second * seconds / images
    line = f"{images_per_second:,.0f} images/s: {seconds:,.0f} s buy {epochs:.1f} epochs of {images:,} images"
    if epochs >= 1:
        return line
    return f"{line}; less than one: give --max-seconds more, or choose a smaller --width or --depth or a larger --patch"

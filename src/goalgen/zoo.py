"""Trained models that come with the package: ``goalgen sample zoo:digits`` needs no training and no network.

Each is a saved model (config.json, model.safetensors with averaged weights in half precision) in a folder of its name.
``benchmarks/bench.py run zoo`` makes them, and docs/benchmarks.md says how good they are.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from goalgen.errors import GoalgenError

PREFIX = "zoo:"
FOLDER = Path(str(files("goalgen"))) / "zoo"


def zoo_names() -> list[str]:
    """Names that may follow "zoo:"."""
    return sorted(path.parent.name for path in FOLDER.glob("*/model.safetensors"))


def zoo_folder(name: str) -> Path:
    """The folder of the model called ``name`` (without "zoo:").

    Raises:
        GoalgenError: the zoo has no such model.
    """
    if name not in zoo_names():
        raise GoalgenError(f"the zoo has no {name!r}; there are: {', '.join(PREFIX + n for n in zoo_names())}")
    return FOLDER / name

"""Small real runs, and what tests ask of their folders."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from goalgen.config import Config
from goalgen.families import families
from goalgen.settings import configure
from goalgen.training.log import read_log
from goalgen.training.loop import Trainer

TINY: dict[str, Any] = {
    "environment": "proposals",
    "limit": 64, "horizon": 3, "num_proposals": 4, "width": 16, "depth": 1, "head_width": 8, "batch_size": 4,
    "warmup_steps": 2, "max_steps": 20, "quiet": True,
}  # fmt: skip
"""A model of a few thousand weights, a step of a few milliseconds."""


def tiny_config(out: Path, **changes: Any) -> Config:
    """The configuration of a run of ``TINY`` with ``changes``, each the name of a setting."""
    return configure(out=out, **tiny_settings(changes))


def tiny_settings(changes: dict[str, Any]) -> dict[str, Any]:
    """``TINY`` with changes, and without what another family than that of TINY does not have."""
    foreign = set() if changes.get("environment", "proposals") in ("proposals", "auto") else {"num_proposals"}
    return {name: value for name, value in (TINY | changes).items() if name not in foreign or name in changes}


def tiny_options(out: Path, **changes: Any) -> list[str]:
    """The same as the arguments of ``goalgen train``."""
    options = ["--out", str(out)]
    for name, value in tiny_settings(changes).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            options += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return options


def setting_names(kind: type) -> list[str]:
    """Names of all settings of a dataclass and of those inside it; of Config, of every family too."""
    names = []
    for field in dataclasses.fields(kind):
        if kind is Config and field.name == "family":
            names += sorted({name for f in families().values() for name in f.Settings.__dataclass_fields__})
            continue
        inner = field.default_factory if dataclasses.is_dataclass(field.default_factory) else None
        names += setting_names(inner) if inner else [field.name]
    return names


def environment(**extra: str) -> dict[str, str]:
    """Environment of a child process: this checkout, one thread."""
    source = Path(__file__).resolve().parents[1] / "src"
    return os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"} | extra


def start(arguments: list[str], **extra: str) -> subprocess.Popen[str]:
    """Start ``python -m goalgen`` with these arguments."""
    command = [sys.executable, "-m", "goalgen", *arguments]
    return subprocess.Popen(
        command, env=environment(**extra), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a process that ends by itself."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


def write_images(folder: Path, count: int = 24, size: tuple[int, int] = (8, 8), mode: str = "L", seed: int = 0) -> Path:
    """PNGs with a bright square each on dark noise, so that there is something to learn. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    channels = () if mode == "L" else (3,)
    for i in range(count):
        pixels = random.integers(0, 60, (*size, *channels), dtype=np.uint8)
        top, left = random.integers(0, size[0] // 2), random.integers(0, size[1] // 2)
        pixels[top : top + size[0] // 2, left : left + size[1] // 2] += 180
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor in a run's last checkpoint and saved models, by file and name."""
    checkpoint = max((folder / "checkpoints").glob("step-*"))
    found = {}
    for place in (checkpoint, folder / "last", folder / "best"):
        for file in sorted(place.glob("*.safetensors")):
            found |= {f"{place.name}/{file.name}/{name}": tensor for name, tensor in load_file(file).items()}
    return found


def different(one: Path, other: Path) -> list[str]:
    """Tensors that are not the same to the last bit in two runs."""
    mine, theirs = tensors(one), tensors(other)
    assert mine
    assert mine.keys() == theirs.keys()
    return [name for name in mine if mine[name].numpy().tobytes() != theirs[name].numpy().tobytes()]


def stop_in_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Send the process a signal, once, when training begins its step of this number in the process."""
    step, calls = Trainer._step, itertools.count()

    def stopping(trainer: Trainer) -> Any:
        if next(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return step(trainer)

    monkeypatch.setattr(Trainer, "_step", stopping)


def timeless_log(folder: Path) -> list[dict[str, Any]]:
    """The log without what a clock decides."""
    return [
        {k: v for k, v in record.items() if k not in ("seconds", "images_per_second")}
        for record in read_log(folder / "log.jsonl")
    ]


def digest(folder: Path) -> dict[str, str]:
    """A hash of every file of a folder, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

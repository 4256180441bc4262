"""What a run keeps to go on from: its checkpoints.

DIR/config.json                      the typed configuration of the run
DIR/checkpoints/step-00000500/       raw weights, averaged weights, optimiser, counters: to resume
DIR/best/, DIR/last/                 a saved model each, see goalgen.saved
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from goalgen.errors import GoalgenError
from goalgen.storage import load_json, load_tensors, one_line, remove_folder, save_tensors, write_folder


@dataclass
class Progress:
    """Counters of a run."""

    step: int = 0
    """Optimiser steps taken."""
    seconds: float = 0.0
    """Seconds of training, over all restarts."""
    best_bits: float | None = None
    """Lowest held-out bound so far, bits/dim, by the averaged weights."""
    best_step: int = 0
    validation_images: int | None = None
    """Held-out images that the run is measured on, the first ones; unset: all."""
    counts: dict[str, int] = field(default_factory=dict)
    """What the family has counted so far, such as proposals revived."""
    window: list[list[float]] = field(default_factory=list)
    """What the steps since the last record of the log measured, for the next record to be whole."""


STATE = {False: {"step", "exp_avg", "exp_avg_sq"}, True: {"step", "momentum"}}
"""What AdamW keeps of a parameter, and Muon of one that it makes orthogonal."""


def read_progress(values: dict[str, Any], step: int) -> Progress:
    """Counters as they were written, of the checkpoint of this step.

    Raises:
        TypeError, ValueError: they cannot be; what is used only later would else end in a traceback there, or in no error.
    """
    progress = Progress(**values)
    images, counts, window = progress.validation_images, progress.counts, progress.window
    rows = window if isinstance(window, list) and all(isinstance(row, list) for row in window) else [[None]]
    sound = {
        "step": type(progress.step) is int and progress.step == step,
        "seconds": _is_number(progress.seconds) and progress.seconds >= 0,
        "best_bits": progress.best_bits is None or _is_number(progress.best_bits),
        "best_step": type(progress.best_step) is int and 0 <= progress.best_step <= step,
        "validation_images": images is None or (type(images) is int and images > 0),
        "counts": isinstance(counts, dict) and all(type(v) is int and _is_number(v) for v in counts.values()),
        "window": all(_is_number(v) for row in rows for v in row) and len({len(row) for row in rows}) <= 1,
    }
    if wrong := [name for name, is_so in sound.items() if not is_so]:
        raise ValueError(f"progress.json: {', '.join(wrong)} cannot be so")
    return progress


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and abs(value) < 1e18


def _restore(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name, known in module.state_dict().items():
        if name in tensors and tensors[name].dtype != known.dtype:  # torch would convert it
            raise ValueError(f"{name} is {tensors[name].dtype}, not {known.dtype}")
    module.load_state_dict(tensors)


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back the state that :func:`save_checkpoint` took, by the names of the model's parameters.

    Raises:
        KeyError, ValueError: it is that of another model.
    """
    groups = [(p, group.get("orthogonal", False)) for group in optimizer.param_groups for p in group["params"]]
    place = {id(p): i for i, (p, _) in enumerate(groups)}
    parameters = dict(model.named_parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        if not value.is_floating_point() or value.shape != (() if entry == "step" else parameters[name].shape):
            raise ValueError(f"{key} of the optimiser is {value.dtype} of shape {tuple(value.shape)}")
        state.setdefault(place[id(parameters[name])], {})[entry] = value
    for i, own in state.items():
        if own.keys() != (due := STATE[groups[i][1]]):
            raise ValueError(f"the optimiser has {sorted(own)} of a parameter, not {sorted(due)}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(
    folder: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, keep: int
) -> None:
    """Write DIR/checkpoints/step-N atomically, then remove all but the newest ``keep``."""
    path = folder / "checkpoints" / f"step-{progress.step:08d}"

    def fill(temporary: Path) -> None:
        save_tensors(temporary / "raw.safetensors", model.state_dict(), {"weights": "raw"})
        save_tensors(temporary / "ema.safetensors", ema.state_dict(), {"weights": "ema"})
        state = {name: optimizer.state.get(parameter, {}) for name, parameter in model.named_parameters()}
        flat = {f"{name}/{key}": torch.as_tensor(value) for name, own in state.items() for key, value in own.items()}
        save_tensors(temporary / "optimizer.safetensors", flat)
        (temporary / "progress.json").write_text(json.dumps(asdict(progress), indent=2) + "\n")

    write_folder(path, fill)
    for old in list_checkpoints(folder)[: -max(keep, 1)]:
        remove_folder(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first.

    Raises:
        GoalgenError: their folder is there and cannot be read. (Path.glob would find nothing, and the run begin anew.)
    """
    place = folder / "checkpoints"
    with one_line():
        try:
            names = sorted(os.listdir(place))
        except (FileNotFoundError, NotADirectoryError):  # nothing there, or a file in the place of the run
            return []
        return [place / name for name in names if re.fullmatch(r"step-\d+", name) and (place / name).is_dir()]


def load_checkpoint(path: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore everything from a checkpoint.

    Raises:
        GoalgenError: a file is missing or damaged, or belongs to another model.
    """
    raw, averaged = load_tensors(path / "raw.safetensors")[0], load_tensors(path / "ema.safetensors")[0]
    state = load_tensors(path / "optimizer.safetensors")[0]
    values = load_json(path / "progress.json")
    if "revived" in values:
        raise GoalgenError(
            f"{path} was written by an earlier goalgen, whose runs this one cannot go on with; its best model still loads: "
            "keep the folder and choose another --out"
        )
    try:
        progress = read_progress(values, int(path.name.rpartition("-")[2]))
        _restore(model, raw)
        _restore(ema, averaged)
        restore_optimizer(optimizer, model, state)
    except (TypeError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise GoalgenError(
            f"{path} does not fit this model ({reason}): it is damaged, or of other data or settings; choose another --out, or "
            "move it away to go on from an older one"
        ) from None
    return progress

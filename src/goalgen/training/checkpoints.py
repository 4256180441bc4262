"""What a run keeps: checkpoints to resume from, and the model to use.

DIR/config.json                      the typed configuration of the run
DIR/checkpoints/step-00000500/       raw weights, averaged weights, optimiser, counters: to resume
DIR/best/, DIR/last/                 a saved model each: model.safetensors (averaged weights),
                                     model.raw.safetensors, config.json
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from goalgen.agents import Agents
from goalgen.config import Config, to_dict
from goalgen.errors import GoalgenError
from goalgen.storage import load_json, load_tensors, save_tensors, write_folder


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
    revived: int = 0
    """Proposals revived so far."""
    window: list[list[float]] = field(default_factory=list)
    """What the steps since the last record of the log measured, for the next record to be whole."""


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser as named tensors: "<index of the parameter>.<name>"."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(value) for i, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(
    folder: Path, agents: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, keep: int
) -> Path:
    """Write DIR/checkpoints/step-N atomically, then remove all but the newest ``keep``."""
    path = folder / "checkpoints" / f"step-{progress.step:08d}"

    def fill(temporary: Path) -> None:
        save_tensors(temporary / "raw.safetensors", agents.state_dict(), {"weights": "raw"})
        save_tensors(temporary / "ema.safetensors", ema.state_dict(), {"weights": "ema"})
        save_tensors(temporary / "optimizer.safetensors", optimizer_tensors(optimizer))
        (temporary / "progress.json").write_text(json.dumps(asdict(progress), indent=2) + "\n")

    write_folder(path, fill)
    for old in list_checkpoints(folder)[: -max(keep, 1)]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    paths = (folder / "checkpoints").glob("step-*")
    return sorted(p for p in paths if p.is_dir() and re.fullmatch(r"step-\d+", p.name))


def load_checkpoint(path: Path, agents: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore everything from a checkpoint.

    Raises:
        GoalgenError: a file is missing or damaged, or belongs to another model.
    """
    raw, averaged = load_tensors(path / "raw.safetensors")[0], load_tensors(path / "ema.safetensors")[0]
    state = load_tensors(path / "optimizer.safetensors")[0]
    values = load_json(path / "progress.json")
    try:
        progress = Progress(**values)
        agents.load_state_dict(raw)
        ema.load_state_dict(averaged)
        restore_optimizer(optimizer, state)
    except (TypeError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise GoalgenError(f"{path} does not fit this model ({reason}); delete it to start from an older one") from None
    return progress


def save_model(
    folder: Path,
    config: Config,
    agents: Agents,
    raw: nn.Module | None,
    start_image: Tensor | None,
    extra: dict[str, Any],
) -> None:
    """Write a saved model atomically: configuration, the weights to use, and the raw ones beside them.

    Args:
        agents: holds the weights to use (the averaged ones, in training).
        raw: holds the weights that the optimiser moves, if they are to be kept too.
        start_image: the initial state (C, height, width), if it is one image for all.
        extra: facts about the model, JSON values ("step", "validation_bits_per_dim", "label_names", ...).
    """
    shape = list(agents.shape)
    facts = {"shape": shape, "levels": agents.levels, "num_labels": agents.num_labels, **extra}

    def fill(temporary: Path) -> None:
        tensors = dict(agents.state_dict())
        if start_image is not None:
            tensors["start.image"] = start_image
        metadata = {"weights": "ema" if raw is not None else str(extra.get("weights", "ema"))}
        save_tensors(temporary / "model.safetensors", tensors, metadata)
        if raw is not None:
            save_tensors(temporary / "model.raw.safetensors", raw.state_dict(), {"weights": "raw"})
        text = json.dumps({**to_dict(config), "facts": facts}, indent=2) + "\n"
        (temporary / "config.json").write_text(text, encoding="utf-8")

    write_folder(folder, fill)

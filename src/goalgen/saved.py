"""What a saved model is: a folder of config.json (configuration and facts) and model.safetensors (the weights to use).

A run's best and last models also have model.raw.safetensors, the weights that the optimiser moves. Loading runs no code of
whoever made the file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor, nn

from goalgen.config import Config
from goalgen.data.provenance import FILE, Provenance
from goalgen.errors import GoalgenError
from goalgen.families import make
from goalgen.family import Family
from goalgen.settings import from_dict, to_dict
from goalgen.storage import load_json, load_tensors, save_tensors, write_folder
from goalgen.zoo import PREFIX, zoo_folder


@dataclass
class Saved:
    """A model as it was found."""

    family: Family
    config: Config
    facts: dict[str, Any]
    """shape, levels, num_labels, and what :func:`save_model` was given besides"""
    start_image: Tensor | None
    """the initial state (C, height, width), if it is one image for all"""
    weights: str
    """which weights these are, "ema" or "raw" """
    provenance: Provenance | None
    """the images that it was made from, where that was kept"""


def model_tensors(family: nn.Module) -> dict[str, Tensor]:
    """What of a family's tensors a saved model holds: all but the buffers that only training needs."""
    modules = family.named_modules()
    left = {f"{at}.{name}" if at else name for at, part in modules for name in getattr(part, "training_buffers", ())}
    return {name: tensor for name, tensor in family.state_dict().items() if name not in left}


def save_model(
    folder: Path,
    config: Config,
    family: Family,
    raw: nn.Module | None,
    start_image: Tensor | None,
    extra: dict[str, Any],
    provenance: Provenance | None = None,
) -> None:
    """Write a saved model atomically: configuration, the weights to use, and the raw ones beside them.

    Args:
        family: holds the weights to use (the averaged ones, in training).
        raw: holds the weights that the optimiser moves, if they are to be kept too.
        start_image: the initial state (C, height, width), if it is one image for all.
        extra: facts about the model, JSON values ("step", "validation_bits_per_dim", "label_names", ...).
        provenance: the images that it was made from.
    """
    facts = {**extra, "shape": list(family.shape), "levels": family.levels, "num_labels": family.num_labels}

    def fill(temporary: Path) -> None:
        tensors = model_tensors(family)
        if start_image is not None:
            tensors["start.image"] = start_image
        metadata = {"weights": "ema" if raw is not None else str(extra.get("weights", "ema"))}
        save_tensors(temporary / "model.safetensors", tensors, metadata)
        if raw is not None:
            save_tensors(temporary / "model.raw.safetensors", model_tensors(raw), {"weights": "raw"})
        if provenance is not None:
            facts["data"] = provenance.about
            provenance.save(temporary / FILE)
        text = json.dumps({**to_dict(config), "facts": facts}, indent=2) + "\n"
        (temporary / "config.json").write_text(text, encoding="utf-8")

    write_folder(folder, fill)


def load_saved(folder: Path, weights: str = "ema") -> Saved:
    """Read a saved model.

    Args:
        folder: see :func:`find_model`.
        weights: "ema", the ones to use, or "raw".

    Raises:
        GoalgenError: a file is missing or damaged, or one does not fit the other.
    """
    values = load_json(folder / "config.json")
    facts = values.pop("facts", None)
    if not isinstance(facts, dict) or not _is_shape(facts.get("shape")) or not isinstance(facts.get("levels"), int):
        raise GoalgenError(
            f"{folder / 'config.json'} is not the configuration of a saved model: it lacks shape and levels"
        )
    config = from_dict(values, source=str(folder / "config.json"), strict=False)
    tensors, metadata = load_tensors(folder / "model.safetensors")
    image = tensors.pop("start.image", None)
    if weights == "raw" and metadata.get("weights") != "raw":
        tensors, metadata = load_tensors(folder / "model.raw.safetensors")
    channels, height, width = facts["shape"]
    family = make(config, (channels, height, width), facts["levels"], num_labels=facts.get("num_labels", 0))
    known, kept = family.state_dict(), model_tensors(family)
    tensors = {name: t for name, t in tensors.items() if t.numel() or name in known}  # empty ones: of earlier versions
    tensors = {name: t for name, t in known.items() if name not in kept} | tensors
    try:
        family.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise GoalgenError(f"{folder / 'model.safetensors'} does not fit its configuration: {reason}") from None
    for name, tensor in (tensors if image is None else {**tensors, "start.image": image}).items():
        if not math.isfinite(tensor.double().sum().item()):
            raise GoalgenError(f"{folder}: the weights {name} hold NaN or infinity; use another checkpoint")
    return Saved(family, config, facts, image, metadata.get("weights", "ema"), Provenance.load(folder / FILE))


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(v, int) and v > 0 for v in value)


def find_model(
    name: str | Path, which: str = "best", revision: str | None = None, token: str | bool | None = None
) -> Path:
    """The folder of the saved model called ``name``: itself, of a run, of the zoo, or from the Hugging Face hub.

    Raises:
        GoalgenError: there is none.
    """
    if str(name).startswith(PREFIX):
        return zoo_folder(str(name).removeprefix(PREFIX))
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "model.safetensors").exists():
            return path
        if (path / which / "config.json").exists():
            return path / which
        if (path / "checkpoints").is_dir() or (path / "log.jsonl").exists():
            raise GoalgenError(f"{path} is a run that has saved no {which} model yet; let it train longer")
        raise GoalgenError(f"{path} holds neither a goalgen run nor a saved model")
    text = str(name)
    if path.exists():
        raise GoalgenError(f"{path} is a file; give the folder of a run or of a saved model")
    if text.count("/") != 1 or text.startswith((".", "~", "/")):
        raise GoalgenError(
            f"{text} does not exist; give the folder of a run or of a saved model, or a hub name owner/model"
        )
    try:
        return Path(snapshot_download(text, revision=revision, token=token, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise GoalgenError(f"{text} is no folder here, and could not be loaded from the hub: {reason}") from None

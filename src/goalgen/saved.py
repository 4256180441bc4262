"""What a saved model is: a folder of config.json (configuration and facts) and model.safetensors (the weights to use).

A run's best and last models also have model.raw.safetensors, the weights that the optimiser moves. Loading runs no code of
whoever made the file.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from goalgen.config import Config
from goalgen.data.provenance import FILE, Provenance
from goalgen.errors import GoalgenError
from goalgen.families import make
from goalgen.family import Family
from goalgen.nearby import is_hub_name, looked
from goalgen.settings import from_dict, to_dict
from goalgen.skeleton import Facts, check_fits, check_numbers, compare, model_tensors, read_facts
from goalgen.storage import load_json, load_shapes, load_tensors, old_folder, one_line, save_tensors, write_folder
from goalgen.zoo import PREFIX, zoo_folder, zoo_names


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
    told = values.pop("facts", None)
    facts = read_facts(told, str(folder / "config.json"))
    config = from_dict(values, source=str(folder / "config.json"), strict=False)
    path, image = folder / "model.safetensors", None
    tensors, metadata = _load_fitting(path, config, facts)
    image = tensors.pop("start.image", None)
    if weights == "raw" and metadata.get("weights") != "raw":
        tensors, metadata = _load_fitting(folder / "model.raw.safetensors", config, facts)
    shape, levels, num_labels = facts
    family = make(config, shape, levels, num_labels=num_labels)
    compare(family, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, str(path))
    known, kept = family.state_dict(), model_tensors(family)
    tensors = {name: t for name, t in tensors.items() if name in known}  # empty ones, of earlier versions, are left out
    check_numbers(tensors if image is None else {**tensors, "start.image": image}, str(folder))
    try:
        family.load_state_dict({name: t for name, t in known.items() if name not in kept} | tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise GoalgenError(f"{path} does not fit its configuration: {reason}") from None
    return Saved(family, config, told, image, metadata.get("weights", "ema"), Provenance.load(folder / FILE))


def _load_fitting(path: Path, config: Config, facts: Facts) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file, once its header says that they are those of the configuration."""
    check_fits(config, facts, load_shapes(path), str(path))
    return load_tensors(path)


FILES = {"config.json", "model.safetensors", "model.raw.safetensors", FILE, "README.md"}
"""Files of a saved model; the last one is the hub's."""


def check_place(folder: Path, *, beside: bool = False) -> None:
    """Refuse to save a model where anything else is.

    Args:
        beside: other files may lie there, as in a folder for the hub, but no other config.json.

    Raises:
        GoalgenError: the folder is a file, holds a run, or other files than a saved model's.
    """
    with one_line():
        if not folder.exists():
            return
        found = {p.name for p in folder.iterdir() if not p.name.startswith(".")} if folder.is_dir() else {folder.name}
        own = not found
        if "config.json" in found:
            with suppress(GoalgenError):
                own = "facts" in load_json(folder / "config.json")
    if folder.is_file() or not (own or (beside and "config.json" not in found)) or not (beside or found <= FILES):
        raise GoalgenError(f"{folder} holds something else than a saved model; choose another folder")


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
        for place in (
            path / which,
            old_folder(path / which),
        ):  # the second if a process was killed just as it replaced it
            if (place / "config.json").exists():
                return place
        if (path / "checkpoints").is_dir() or (path / "log.jsonl").exists():
            raise GoalgenError(f"{path} is a run that has saved no {which} model yet; let it train longer")
        raise GoalgenError(f"{path} holds neither a goalgen run nor a saved model")
    text = str(name)
    if path.exists():
        raise GoalgenError(f"{path} is a file; give the folder of a run or of a saved model")
    if not is_hub_name(text):
        raise GoalgenError(
            f"{text} does not exist {looked(text, [PREFIX + n for n in zoo_names()])}; give the folder of a run or of a saved model, or a hub name owner/model"
        )
    try:
        return Path(snapshot_download(text, revision=revision, token=token, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # hub and network libraries each have their own
        reason = (
            str(error).strip().splitlines()[0].partition(". ")[0][:160] if str(error).strip() else type(error).__name__
        )
        raise GoalgenError(
            f"{text} is no folder here, and could not be loaded from the hub: {reason} {looked(text)}"
        ) from None


def check_device(device: str | torch.device) -> torch.device:
    """The device of this name.

    Raises:
        GoalgenError: it is not there on this machine.
    """
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):
        raise GoalgenError(f"--device {device} is not there on this machine; use --device cpu") from None

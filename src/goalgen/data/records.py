"""Images not yet decoded: the records of a source, split by split, and those of a folder of files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goalgen.data.files import find_images
from goalgen.data.images import EXTENSIONS
from goalgen.errors import GoalgenError

SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)
"""What folders, files and splits of the hub are called, in lower case, and the split that each holds."""

Item = tuple[str, Path | bytes | None]
"""What messages call an image, and its file or the bytes of one; None where a row of a table has none."""


@dataclass(frozen=True)
class Records:
    """The images of one split of a source, in order."""

    read: Callable[[], Iterator[Item]]
    labels: list[Any] | None
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Source:
    """A source opened: its splits ("train" always, "test" and "validation" where it has them)."""

    name: str
    splits: dict[str, Records]
    label_names: tuple[str, ...] | None


def encode_labels(source: Source) -> tuple[dict[str, Tensor | None], tuple[str, ...] | None]:
    """Return the labels of every split as int64, and their names; a split that misses one has none at all."""
    values = {split: records.labels for split, records in source.splits.items()}
    words = sorted({v for column in values.values() for v in column or () if isinstance(v, str)})
    names = tuple(words) or source.label_names
    code = {word: i for i, word in enumerate(words)}
    encoded: dict[str, Tensor | None] = {}
    for split, column in values.items():
        numbers = [code.get(v) for v in column] if code and column is not None else column
        # Hugging Face writes -1 for the labels that a test split keeps to itself.
        known = numbers is not None and all(isinstance(v, int) and v >= 0 for v in numbers)
        encoded[split] = torch.tensor(numbers, dtype=torch.int64) if known else None
    return encoded, names if any(column is not None for column in encoded.values()) else None


def open_folder(name: str, root: Path) -> Source:
    """Return the images in ``root`` and below, divided by folders called after splits, labelled by their own folders.

    Raises:
        GoalgenError: there are no images, or none in the folder of training images.
    """
    paths = find_images(root)
    if not paths:
        raise GoalgenError(f"{root} holds no images; looked for {' '.join(EXTENSIONS)} in it and its folders")
    split_of = {d.name: SPLIT_NAMES[d.name.lower()] for d in root.iterdir() if d.name.lower() in SPLIT_NAMES}
    groups: dict[str, list[Path]] = {"train": []}
    if "train" in split_of.values():
        unused = []
        for path in paths:
            split = split_of.get(path.relative_to(root).parts[0])
            groups.setdefault(split, []).append(path) if split else unused.append(path)
        if unused:
            count = len(unused)
            message = f"{root} has a folder of training images; {count} outside of it unused, such as {unused[0]}"
            warnings.warn(message, stacklevel=2)
        if not groups["train"]:
            raise GoalgenError(f"the training folder in {root} holds no images; looked for {' '.join(EXTENSIONS)}")
        depth = 3  # split/class/image
    else:
        groups["train"] = paths
        depth = 2  # class/image
    parts = {split: [p.relative_to(root).parts for p in group] for split, group in groups.items()}
    everything = [p for group in parts.values() for p in group]
    # One folder tells nothing apart, so it is no class.
    labelled = all(len(p) == depth for p in everything) and len({p[-2] for p in everything}) > 1
    splits = {}
    for split, group in groups.items():
        names = tuple(p.relative_to(root).with_suffix("").as_posix() for p in group)
        labels = [p[-2] for p in parts[split]] if labelled else None
        splits[split] = Records(partial(iter, [(str(path), path) for path in group]), labels, names)
    return Source(name, splits, None)

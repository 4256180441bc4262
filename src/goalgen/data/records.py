"""Images not yet decoded: the records of a source, split by split, and those of a folder of files."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from goalgen.data.files import find_images
from goalgen.data.formats import EXTENSIONS
from goalgen.errors import GoalgenError

SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)
"""What folders, files and splits of the hub are called, in lower case, and the split that each holds."""

_NEUTRAL = frozenset(["image", "images", "img", "imgs", "data", "dataset", "set", "split", "folder", "files"])
"""Words that may stand beside the split in the name of a folder, such as train_images."""

Item = tuple[str, Path | bytes | None]
"""What messages call an image, and its file or the bytes of one; None where a row of a table has none."""


@dataclass(frozen=True)
class Records:
    """The images of one split of a source, in order."""

    read: Callable[[], Iterator[Item]]
    labels: list[Any] | None
    names: tuple[str, ...] | None = None
    count: int | None = None
    """how many there are, where they come by a stream: then they are read once, and ``labels`` are there when they are read"""


@dataclass(frozen=True)
class Source:
    """A source opened: its splits ("train" always, "test" and "validation" where it has them)."""

    name: str
    splits: dict[str, Records]
    label_names: tuple[str, ...] | None
    """what labels that are numbers are called, where the source says so"""

    @property
    def streams(self) -> bool:
        """Whether its images come by a stream, and are nowhere here."""
        return any(records.count is not None for records in self.splits.values())

    def holds_paths(self) -> bool:
        """Whether its images are files of their own."""
        return any(isinstance(item, Path) for r in self.splits.values() for _, item in islice(r.read(), 1))


def split_of_folder(name: str) -> str | None:
    """Return the split that a folder is called after: "train", "Test", "val2017", "train_images"; None for all others."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return splits.pop() if len(splits) == 1 and all(w in SPLIT_NAMES or w in _NEUTRAL for w in words) else None


def by_split(paths: list[Path], split_of: Callable[[Path], str | None], root: Path) -> dict[str, list[Path]]:
    """Sort files by their split: those of none are the training files where there are no others for training.

    Warns:
        UserWarning: some files are of no split, and unused, or taken for training.

    Raises:
        GoalgenError: there are splits, and none to train on.
    """
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(split_of(path) or "", []).append(path)
    loose = groups.pop("", [])
    if not groups:
        return {"train": loose}
    if not loose and "train" not in groups:
        hint = "call one of them train, or give one as --data to learn from it alone"
        raise GoalgenError(f"{root} has no training split, only {' and '.join(sorted(groups))}; {hint}")
    held = " and ".join(sorted(groups.keys() - {"train"}))
    if loose and "train" in groups:
        message = f"{root} has a training split; {len(loose):,} outside of any split unused, such as {loose[0]}"
        warnings.warn(message, stacklevel=3)
    elif loose:
        message = f"{root} has a {held} split and none called train: the other {len(loose):,} files are learned from"
        warnings.warn(f"{message}, such as {loose[0]}", stacklevel=3)
    return {"train": groups.pop("train", loose), **groups}


def open_folder(name: str, root: Path) -> Source:
    """Return the images in ``root`` and below, divided by folders called after splits, labelled by their own folders.

    Folders of splits may lie in those of classes as well as around them.

    Raises:
        GoalgenError: there are no images, or none to train on.
    """
    paths = find_images(root)
    if not paths:
        raise GoalgenError(f"{root} holds no images; looked for {' '.join(EXTENSIONS)} in it and its folders")

    folders = {p: list(p.relative_to(root).parts[:-1]) for p in paths}
    groups = by_split(paths, lambda p: next(filter(None, map(split_of_folder, folders[p])), None), root)
    for place in filter(Path.is_dir, root.iterdir()):
        if split_of_folder(place.name) == "train" and not any(place in p.parents for p in groups["train"]):
            raise GoalgenError(f"the training folder {place} holds no images; fill it or remove it")
    shared = _shared(list(folders.values()))
    homes = {split: [_class_folders(folders[p][shared:]) for p in group] for split, group in groups.items()}
    inside = {split: all(len(home) == 1 for home in found) for split, found in homes.items()}
    # One folder tells nothing apart, so it is no class.
    several = len({home[0] for split, found in homes.items() if inside[split] for home in found}) > 1
    splits = {}
    for split, group in groups.items():
        names = tuple(p.relative_to(root).with_suffix("").as_posix() for p in group)
        labels: list[Any] | None = [home[0] for home in homes[split]] if several and inside[split] else None
        if not inside[split] and len({home[0] for home in homes[split] if home}) > 1:
            odd = next(p for p, home in zip(group, homes[split], strict=True) if len(home) != 1)
            message = f"{root}: {split} images have no labels, as not every one lies in a folder of its class: {odd}"
            warnings.warn(message, stacklevel=3)
        splits[split] = Records(partial(iter, [(str(path), path) for path in group]), labels, names)
    return Source(name, splits, None)


def _shared(homes: list[list[str]]) -> int:
    """How many folders lie around all images and tell nothing apart, such as the one that a zip file makes."""
    count = 0
    while all(len(h) > count for h in homes) and len({h[count] for h in homes}) == 1:
        count += 1
    return count


def _class_folders(home: list[str]) -> list[str]:
    """Folders around an image, without the one that names its split; of label=cat the label."""
    at = next((i for i, folder in enumerate(home) if split_of_folder(folder)), None)
    return [label_of_folder(f) or f for i, f in enumerate(home) if i != at]


def label_of_folder(name: str) -> str | None:
    """Return the label that a folder of a partition gives to all that is in it, such as label=cat; None for all others."""
    key, _, value = name.partition("=")
    return unquote(value) if value and key.lower() in ("label", "labels", "class") else None

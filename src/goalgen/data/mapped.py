"""Images decoded once into a file that is mapped into memory, for data that are larger than it.

CACHE/images-KEY/pixels              (n, C, height, width) uint8: the images of training, validation and test
CACHE/images-KEY/blocks.jsonl        while it is made: the blocks of records that are done, and a hash of what they became
CACHE/images-KEY/about.safetensors   once it is made: labels, digests and names, and how many images there are of each set

Reading a batch touches its own rows alone; the pages belong to the system, which takes them back when it needs memory. All
processes of a machine share one file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from goalgen.cache import cache_folder, cache_key
from goalgen.config import DataConfig
from goalgen.data.files import list_files
from goalgen.data.sets import ImageSet, image_digests
from goalgen.errors import GoalgenError
from goalgen.storage import load_tensors, save_tensors, write_atomically

SHARE = 0.25
"""Of the memory that is free, what decoded images may take before they are kept on disk instead."""
SAMPLE = 256
"""Images, spread over the file, that are compared with their digests when it is opened."""
ROLES = ("train", "validation", "test")
PIXELS, JOURNAL, ABOUT = "pixels", "blocks.jsonl", "about.safetensors"
_VERSION = 1


def belongs_on_disk(size: int, setting: str) -> bool:
    """Whether ``size`` bytes of decoded images are better mapped than held in memory.

    By the setting (--data-cache), or, where it is "auto", if all processes of this machine together would fill more than a
    quarter of the memory that is free.
    """
    if setting != "auto":
        return setting == "disk"
    return size * int(os.environ.get("LOCAL_WORLD_SIZE") or 1) > SHARE * free_memory()


def free_memory() -> int:
    """Bytes of memory that can still be taken: those of the machine, or as many as a container or ``ulimit -d`` allows."""
    free = psutil.virtual_memory().available
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups, version 2 and 1
        try:
            free = min(free, int(Path("/sys/fs/cgroup", limit).read_text()))
        except (OSError, ValueError):  # there is none
            continue
    try:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_DATA)[0]
        return free if soft == resource.RLIM_INFINITY else min(free, soft)
    except ImportError:  # Windows
        return free


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a finished file holds."""

    sets: dict[str, ImageSet]
    label_names: tuple[str, ...] | None
    name: str


class Mapped:
    """The file of the images of one source, decoded by one choice of settings."""

    def __init__(self, key: str) -> None:
        self.folder = cache_folder() / f"images-{key}"
        self.revision: str | None = None
        """of the source, where it has one: a file of another is made anew"""

    @classmethod
    def of_path(cls, path: Path, config: DataConfig) -> Mapped:
        """The file of what lies at ``path``: known by names, sizes and times of change, as reading all would take minutes."""
        digest = hashlib.blake2b(digest_size=16)
        root = path if path.is_dir() else path.parent
        for file in list_files(path).files if path.is_dir() else [path]:
            found = file.stat()
            digest.update(f"{file.relative_to(root).as_posix()} {found.st_size} {found.st_mtime_ns}\n".encode())
        return cls(_key(config, path.resolve().as_posix(), digest.hexdigest()))

    @classmethod
    def of_hub(cls, config: DataConfig) -> Mapped:
        """The file of a data set on the hub."""
        return cls(_key(config, config.data))

    # -- a finished file -------------------------------------------------------------------------------------------

    def is_made(self) -> bool:
        """Whether there is a finished file."""
        return (self.folder / ABOUT).exists()

    def load(self) -> Kept | None:
        """Return what the file holds, mapped; None where it is not there, or has to be made anew.

        Warns:
            UserWarning: what was said when it was made; or it is damaged, or of another revision, and is removed.
        """
        if not self.is_made():
            return None
        try:
            tensors, metadata = load_tensors(self.folder / ABOUT)
            facts = json.loads(metadata["about"])
            if self.revision and facts["revision"] and self.revision != facts["revision"]:
                raise ValueError("the data have changed since")
            sets = self._sets(tensors, facts)
        except (GoalgenError, OSError, KeyError, TypeError, ValueError) as error:
            warnings.warn(f"{self.folder}: {error}; making it anew", stacklevel=2)
            for name in (ABOUT, PIXELS, JOURNAL):
                (self.folder / name).unlink(missing_ok=True)
            return None
        for remark in facts["remarks"]:
            warnings.warn(remark, stacklevel=2)
        return Kept(sets, None if facts["label_names"] is None else tuple(facts["label_names"]), facts["name"])

    def _sets(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> dict[str, ImageSet]:
        """Raises ValueError where the file is not what was written."""
        shape, counts = tuple(facts["shape"]), facts["counts"]
        total, digests = sum(counts), tensors["digests"]
        size, wanted = (self.folder / PIXELS).stat().st_size, total * math.prod(shape)
        if size != wanted:
            raise ValueError(f"it has {size:,} bytes of pixels, not {wanted:,}")
        images = map_images(self.folder / PIXELS, total, shape)
        rows = torch.linspace(0, total - 1, min(SAMPLE, total)).round().long()
        if not torch.equal(image_digests(images[rows]), digests[rows]):
            raise ValueError("it holds other pixels than were written")
        sets, first = {}, 0
        for role, count in zip(ROLES, counts, strict=True):
            part = slice(first, first + count)
            names = tensors.get(f"{role}.names")
            told = None if names is None else tuple(json.loads(bytes(names.numpy())))
            sets[role] = ImageSet(images[part], 256, tensors.get(f"{role}.labels"), told, digests[part].clone())
            first += count
        return sets

    def keep(self, sets: dict[str, ImageSet], label_names: tuple[str, ...] | None, name: str, said: list[str]) -> None:
        """Finish the file: the images are those that :func:`goalgen.data.decoding.decode_into` has given, ``said`` is what to say when it is opened."""
        tensors = {"digests": torch.cat([sets[role].digest() for role in ROLES])}
        for role in ROLES:
            labels, names = sets[role].labels, sets[role].names
            tensors |= {} if labels is None else {f"{role}.labels": labels}
            if names is not None:
                tensors[f"{role}.names"] = torch.frombuffer(bytearray(json.dumps(names).encode()), dtype=torch.uint8)
        facts = {
            "shape": sets["train"].shape, "counts": [len(sets[role]) for role in ROLES], "label_names": label_names,
            "name": name, "revision": self.revision, "remarks": said,
        }  # fmt: skip
        write_atomically(self.folder / ABOUT, lambda path: save_tensors(path, tensors, {"about": json.dumps(facts)}))
        (self.folder / JOURNAL).unlink(missing_ok=True)

    # -- making it -------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time make the file; the others wait for it.

        Raises:
            GoalgenError: the cache cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock", is_singleton=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:  # silent: what the other process says of its progress is enough
                lock.acquire()
        except OSError as error:
            hint = "set GOALGEN_CACHE to a folder that can, or --data-cache memory"
            raise GoalgenError(f"{self.folder} cannot be written: {error.strerror or error}; {hint}") from None
        try:
            yield
        finally:
            lock.release()

    def check_room(self, size: int) -> int:
        """Return the bytes that are free where the file of ``size`` bytes is made.

        Raises:
            GoalgenError: they are too few for what is still to be written.
        """
        pixels = self.folder / PIXELS
        written = pixels.stat().st_blocks * 512 if pixels.exists() and hasattr(os.stat_result, "st_blocks") else 0
        free = shutil.disk_usage(self.folder).free
        if size - written > free:
            raise GoalgenError(
                f"decoded, the images take {size / 1e9:,.1f} GB, and the disk of {self.folder.parent} has {free / 1e9:,.1f} GB free: "
                "make room, set GOALGEN_CACHE to a folder on a larger disk, or use a smaller --image-size or --limit"
            )
        return free


def map_images(path: Path, count: int, shape: tuple[int, ...]) -> Tensor:
    """Return the images of a file of pixels, (count, C, height, width) uint8, which are read when they are asked for."""
    # Read-only and shared: a private mapping would be counted as memory that might be written, and refused if too large.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nobody may write to it, and nobody does
        return torch.from_numpy(np.memmap(path, np.uint8, "r", shape=(count, *shape)))


def _key(config: DataConfig, *source: str) -> str:
    """A hash of a source and of all settings that say what becomes of it."""
    settings = dataclasses.asdict(config)
    del settings["data"], settings["data_cache"]
    return cache_key("images", _VERSION, sorted(settings.items()), source)

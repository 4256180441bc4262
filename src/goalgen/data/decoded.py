"""What parquet files decode to, kept in the cache by their content.

Decoding 70,000 PNGs takes seconds at every start of a process, reading what they decode to a tenth of one. Only parquet
files are kept so: their content is hashed in no time, and they hold whole data sets.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from goalgen.cache import cache_key, load_stored, store
from goalgen.config import DataConfig
from goalgen.data.images import walk
from goalgen.data.sets import ImageSet, Splits

LARGEST = 2**30
"""Bytes of parquet files up to which what they decode to is kept."""

_VERSION = 1


def is_table(path: Path) -> bool:
    """Whether a file is a parquet file of images (metadata.parquet describes a folder of images)."""
    return path.suffix.lower() == ".parquet" and not path.stem.startswith("metadata")


def decoded_key(path: Path, config: DataConfig) -> str | None:
    """Return a hash of all parquet files at ``path`` and of all settings but where they lie; None for other sources."""
    files = [path] if path.is_file() else walk(path)
    tables = [file for file in files if is_table(file)]
    try:
        if not tables or sum(file.stat().st_size for file in tables) > LARGEST:
            return None
        contents = []
        for file in tables:
            with file.open("rb") as stream:
                contents.append((str(file.relative_to(path)), hashlib.file_digest(stream, "blake2b").hexdigest()))
    except OSError:
        return None  # whoever opens the file next has the words for it
    settings = {**dataclasses.asdict(config), "data": path.resolve().name}
    return cache_key("decoded", _VERSION, sorted(settings.items()), contents)


def store_decoded(key: str, splits: Splits) -> None:
    """Keep the images, labels and names of classes of three sets."""
    tensors: dict[str, Tensor] = {}
    for role, images in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        tensors[f"{role}.images"] = images.images
        if images.labels is not None:
            tensors[f"{role}.labels"] = images.labels
    levels = [splits.train.levels, splits.test.levels]
    about = json.dumps({"levels": levels, "label_names": splits.label_names, "name": splits.name})
    store("decoded", key, {**tensors, "about": torch.tensor(list(about.encode()), dtype=torch.uint8)})


def load_decoded(key: str, config: DataConfig) -> Splits | None:
    """Return what :func:`store_decoded` kept, or None."""
    tensors = load_stored("decoded", key)
    if tensors is None:
        return None
    about = json.loads(bytes(tensors["about"].tolist()))
    levels, names = about["levels"], about["label_names"]
    train, validation, test = (
        ImageSet(tensors[f"{role}.images"], level, tensors.get(f"{role}.labels"))
        for role, level in (("train", levels[0]), ("validation", levels[1]), ("test", levels[1]))
    )
    return Splits(train, validation, test, None if names is None else tuple(names), about["name"], config.binarize)

"""Arrow tables with a column of encoded images: parquet files, and what the Hugging Face hub gives.

What parquet files decode to is kept in the cache by their content: decoding 70,000 PNGs takes seconds at every start of a
process, reading what they decode to a tenth of one. Other sources are not kept: a parquet file is hashed in no time, and
holds a whole data set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goalgen.cache import cache_key, load_stored, store, stored_size
from goalgen.config import DataConfig
from goalgen.data.files import list_files
from goalgen.data.mapped import belongs_on_disk
from goalgen.data.records import SPLIT_NAMES, Item, Records, Source, by_split, label_of_folder
from goalgen.data.sets import ImageSet, Splits
from goalgen.errors import GoalgenError

INSTALL = "pip install datasets pyarrow"
"""What reading tables needs, for messages."""
LARGEST = 2**30
"""Bytes of parquet files up to which what they decode to is kept."""
_VERSION = 2


@dataclass(frozen=True)
class Table:
    """Rows of arrow tables that hold encoded images, or paths to them, in one column."""

    schema: Any
    read: Callable[[str], Iterator[tuple[str, Any]]]  # column -> what messages call each row, and its value
    folder: Path  # against which relative paths in the table are read
    labels: list[str] | None = None  # of its rows, where its files lie in folders that say so

    def images(self, column: str) -> Iterator[Item]:
        for name, value in self.read(column):
            if isinstance(value, dict):
                value = value.get("bytes") or value.get("path")
            yield name, self.folder / value if isinstance(value, str) else value


def is_table(path: Path) -> bool:
    """Whether a file is a parquet file of images (metadata.parquet describes a folder of images)."""
    return path.suffix.lower() == ".parquet" and not path.stem.startswith("metadata")


def parquet_splits(tables: list[Path], root: Path) -> dict[str, list[Path]]:
    """Sort parquet files by the split that a word of their names (mnist_train.parquet) or folders (test/0.parquet) says.

    Folders of a partition (split=train/label=cat) are heard where they speak of splits.

    Raises:
        GoalgenError: a name says two splits, or there are splits and none to train on.
    """

    def split_of(path: Path) -> str | None:
        *folders, name = path.relative_to(root).parts
        for part in reversed([*folders, Path(name).stem]):
            key, is_partition, value = part.lower().partition("=")
            if is_partition and key not in ("split", "subset", "fold"):
                continue
            words = re.split(r"[^a-z]+", value if is_partition else part.lower())
            found = sorted({SPLIT_NAMES[w] for w in words if w in SPLIT_NAMES})
            if len(found) > 1:
                raise GoalgenError(f"{path} is called after two splits, {' and '.join(found)}; rename it")
            if found:
                return found[0]
        return None

    return by_split(tables, split_of, root)


def open_parquet(name: str, groups: dict[str, list[Path]], root: Path) -> Source:
    """Return the source of the parquet files of each split, all below ``root``.

    Raises:
        GoalgenError: pyarrow is missing, or a file cannot be read or has no column of encoded images.
    """
    # Read with pyarrow alone: datasets would copy everything into ~/.cache, and takes seconds to import.
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise GoalgenError(f"reading parquet files needs pyarrow: {INSTALL}") from None

    def read(files: list[Path], column: str) -> Iterator[tuple[str, Any]]:
        for file in files:
            row, within = itertools.count(), file.relative_to(root).as_posix()
            try:
                with pq.ParquetFile(file) as opened:
                    for batch in opened.iter_batches(batch_size=512, columns=[column]):
                        for value in batch.column(0).to_pylist():
                            yield f"{within} row {next(row)}", value
            except (pa.ArrowException, OSError, IndexError) as error:
                raise GoalgenError(f"{file} cannot be read as parquet with a column {column!r}: {error}") from None

    tables = {}
    for split, files in groups.items():
        try:
            schema = pq.read_schema(files[0])
            told = {f: next(filter(None, map(label_of_folder, f.relative_to(root).parts[:-1])), None) for f in files}
            labels = None
            if all(told.values()):
                labels = [str(told[file]) for file in files for _ in range(pq.read_metadata(file).num_rows)]
        except (pa.ArrowException, OSError) as error:
            raise GoalgenError(f"{files[0]} cannot be read as a parquet file: {error}") from None
        tables[split] = Table(schema, partial(read, files), files[0].parent, labels)
    return open_tables(name, tables)


def open_tables(name: str, tables: dict[str, Table]) -> Source:
    """Return the source of one table a split, once its columns are known.

    Raises:
        GoalgenError: the table "train" has no column of encoded images.
    """
    image, label, label_names = columns_of(name, tables["train"].schema)
    splits = {}
    for split, table in tables.items():
        told = label is not None and label in table.schema.names
        labels = [value for _, value in table.read(str(label))] if told else table.labels
        splits[split] = Records(partial(table.images, image), labels)
    return Source(name, splits, label_names)


def columns_of(name: str, schema: Any) -> tuple[str, str | None, tuple[str, ...] | None]:
    """Return the image column, the label column and the names of the labels.

    Hugging Face writes its features into the schema; files written by others are read by the names of columns.
    """
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {column: feature.get("_type") for column, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        features, kinds = {}, {}
    images = [c for c in schema.names if kinds.get(c) == "Image"]
    images += [c for c in ("image", "img", "png", "jpg") if c in schema.names]
    if not images:
        raise GoalgenError(f"{name} has no column of images, only {', '.join(schema.names)}; call it 'image'")
    stored = str(schema.field(images[0]).type)
    if not re.match(r"struct<(.*\b)?(bytes|path): |(large_)?(binary|string)", stored):
        raise GoalgenError(f"the column {images[0]!r} of {name} holds {stored}, not encoded images such as PNG files")
    labels = [c for c in schema.names if kinds.get(c) == "ClassLabel"]
    labels += [c for c in ("label", "labels", "fine_label") if c in schema.names]
    if not labels:
        return images[0], None, None
    names = features.get(labels[0], {}).get("names") if kinds.get(labels[0]) == "ClassLabel" else None
    return images[0], labels[0], tuple(map(str, names)) if names else None


def decoded_key(path: Path, config: DataConfig) -> str | None:
    """Return a hash of all parquet files at ``path`` and of all settings but where they lie; None for other sources."""
    files = [path] if path.is_file() else list_files(path).files
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
    del settings["data_cache"]  # where they are kept changes nothing
    return cache_key("decoded", _VERSION, sorted(settings.items()), contents)


def store_decoded(key: str, splits: Splits) -> None:
    """Keep the images, labels and names of classes of three sets."""
    tensors: dict[str, Tensor] = {}
    for role, images in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        tensors[f"{role}.images"] = images.images
        if images.labels is not None:
            tensors[f"{role}.labels"] = images.labels
        if images.digests is not None:
            tensors[f"{role}.digests"] = images.digests
    levels = [splits.train.levels, splits.test.levels]
    about = json.dumps({"levels": levels, "label_names": splits.label_names, "name": splits.name})
    store("decoded", key, {**tensors, "about": torch.tensor(list(about.encode()), dtype=torch.uint8)})


def load_decoded(key: str, config: DataConfig) -> Splits | None:
    """Return what :func:`store_decoded` kept; None where that is nothing, or would fill the memory."""
    if belongs_on_disk(stored_size("decoded", key), config.data_cache):
        return None
    tensors = load_stored("decoded", key)
    if tensors is None:
        return None
    about = json.loads(bytes(tensors["about"].tolist()))
    levels, names = about["levels"], about["label_names"]
    train, validation, test = (
        ImageSet(tensors[f"{role}.images"], level, tensors.get(f"{role}.labels"), None, tensors.get(f"{role}.digests"))
        for role, level in (("train", levels[0]), ("validation", levels[1]), ("test", levels[1]))
    )
    return Splits(train, validation, test, None if names is None else tuple(names), about["name"], config.binarize)

"""From a name or a path to three sets of images: the digits, folders, parquet files, the Hugging Face hub.

Every source is first a list of *records*, files not yet decoded, per split. The headers are read to find
the common shape and the unreadable files; the splits are chosen; only then are the chosen images decoded,
into one tensor allocated beforehand.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from goalgen import rng
from goalgen.config import DataConfig
from goalgen.data.decoded import decoded_key, is_table, load_decoded, store_decoded
from goalgen.data.images import (
    EXTENSIONS,
    ImageInfo,
    binarize_images,
    decode_image,
    find_images,
    inspect_image,
    parse_colour,
    to_bytes,
    walk,
)
from goalgen.data.sets import ImageSet, Splits
from goalgen.errors import GoalgenError

LARGE = 4 * 2**30
"""Bytes of decoded images from which a warning states the size before memory is taken."""

INSTALL = 'pip install "goalgen[datasets]"'

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}


# 1. What a user calls


def load_data(config: DataConfig) -> Splits:
    """Read the goals that ``config`` describes.

    All random choices (held-out images, --limit, binarised test images) are fixed: they depend neither on
    a run's seed nor on the machine, so that runs can be compared.

    Warns:
        UserWarning: unreadable images were skipped, or the decoded images exceed ``LARGE`` bytes.

    Raises:
        GoalgenError: the source does not exist, cannot be read, has too few images or images of several
            sizes, or a setting has no meaning.
    """
    _check(config)
    if config.data == "digits":
        return _digits(config)
    path = Path(config.data).expanduser()
    if not path.exists():
        return _decode_splits(_open_hub(config.data), config)[0]
    key = decoded_key(path, config)
    found = None if key is None else load_decoded(key, config)
    if found is not None:
        return found
    splits, whole = _decode_splits(_open_path(path), config)
    if key is not None and whole:
        store_decoded(key, splits)
    return splits


def _check(config: DataConfig) -> None:
    for name in ("validation_fraction", "test_fraction"):
        if not 0 < getattr(config, name) < 1:
            raise GoalgenError(f"{name} must lie between 0 and 1, not {getattr(config, name)}; try 0.1")
    if config.limit is not None and config.limit < 1:
        raise GoalgenError(f"--limit must be at least 1, not {config.limit}")
    if config.image_size is not None and min(config.image_size) < 1:
        raise GoalgenError(f"--image-size must be two positive numbers (height width), not {config.image_size}")
    if config.channels not in (None, 1, 3):
        raise GoalgenError(f"--channels must be 1 (grey) or 3 (RGB), not {config.channels}")
    if config.fit not in ("crop", "pad", "stretch"):
        raise GoalgenError(f"--fit must be crop, pad or stretch, not {config.fit!r}")
    if config.corrupt not in ("skip", "refuse"):
        raise GoalgenError(f"--corrupt must be skip or refuse, not {config.corrupt!r}")
    if not config.data.strip():
        raise GoalgenError('--data is empty; give "digits", a folder, a parquet file or a hub name')
    parse_colour(config.background)


# 2. Records: images not yet decoded


class _Records(Protocol):
    """The images of one split of a source."""

    @property
    def labels(self) -> list[Any] | None: ...
    @property
    def names(self) -> tuple[str, ...] | None: ...
    def __len__(self) -> int: ...
    def describe(self, index: int) -> str: ...
    def read(self) -> Iterator[Path | bytes | None]: ...


@dataclass(frozen=True)
class _Files:
    """Image files."""

    paths: list[Path]
    names: tuple[str, ...]
    labels: list[Any] | None

    def __len__(self) -> int:
        return len(self.paths)

    def describe(self, index: int) -> str:
        return str(self.paths[index])

    def read(self) -> Iterator[Path | bytes | None]:
        yield from self.paths


@dataclass(frozen=True)
class _Table:
    """Rows of arrow tables that hold encoded images, or paths to them, in one column."""

    column: str
    rows: list[tuple[str, int]]  # (name, number of rows) of each table, for messages
    batches: Callable[[str], Iterator[Any]]  # column -> its values as arrow arrays, in order
    folder: Path  # against which relative paths in the table are read
    labels: list[Any] | None
    names: None = None

    def __len__(self) -> int:
        return sum(count for _, count in self.rows)

    def describe(self, index: int) -> str:
        for name, count in self.rows:
            if index < count:
                return f"{name} row {index}"
            index -= count
        raise IndexError(index)

    def read(self) -> Iterator[Path | bytes | None]:
        for batch in self.batches(self.column):
            for value in batch.to_pylist():
                if isinstance(value, dict):
                    value = value.get("bytes") or value.get("path")
                yield self.folder / value if isinstance(value, str) else value


@dataclass(frozen=True)
class _Source:
    """A source opened: its splits ("train" always, "test" and "validation" where it has them)."""

    name: str
    splits: dict[str, _Records]
    label_names: tuple[str, ...] | None


def _open_path(path: Path) -> _Source:
    if path.is_file():
        if path.suffix.lower() == ".parquet":
            return _parquet(path.stem, {"train": [path]}, path.parent)
        if path.suffix.lower() in EXTENSIONS:
            raise GoalgenError(f"{path} is a single image; give a folder of images")
        raise GoalgenError(f"{path} is neither a folder of images nor a .parquet file")
    name = path.resolve().name or str(path)
    tables = [p for p in walk(path) if is_table(p)]
    if tables:
        return _parquet(name, _parquet_splits(tables, path), path)
    return _folder(name, path)


# 3. Folders of images


def _folder(name: str, root: Path) -> _Source:
    paths = find_images(root)
    if not paths:
        raise GoalgenError(f"{root} holds no images; looked for {' '.join(EXTENSIONS)} in it and its folders")
    split_of = {d.name: _SPLIT_NAMES[d.name.lower()] for d in root.iterdir() if d.name.lower() in _SPLIT_NAMES}
    groups: dict[str, list[Path]] = {"train": []}
    if "train" in split_of.values():
        unused = []
        for path in paths:
            split = split_of.get(path.relative_to(root).parts[0])
            groups.setdefault(split, []).append(path) if split else unused.append(path)
        if unused:
            _warn(f"{root} has a folder of training images; {len(unused)} outside of it unused, such as {unused[0]}")
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
    splits: dict[str, _Records] = {
        split: _Files(
            group,
            tuple(p.relative_to(root).with_suffix("").as_posix() for p in group),
            [p[-2] for p in parts[split]] if labelled else None,
        )
        for split, group in groups.items()
    }
    return _Source(name, splits, None)


# 4. Parquet files and the hub


def _parquet_splits(tables: list[Path], root: Path) -> dict[str, list[Path]]:
    """Sort parquet files by the split that their names (train-0.parquet) or folders (train/0.parquet) begin with."""
    groups: dict[str, list[Path]] = {}
    unnamed = []
    for path in tables:
        words = [re.split(r"[^a-z]", part.lower())[0] for part in reversed(path.relative_to(root).parts)]
        split = next((_SPLIT_NAMES[w] for w in words if w in _SPLIT_NAMES), None)
        groups.setdefault(split, []).append(path) if split else unnamed.append(path)
    if not groups:
        return {"train": unnamed}
    if "train" not in groups:
        raise GoalgenError(f"{root} has no training split, only {', '.join(groups)}; name one file train.parquet")
    if unnamed:
        _warn(f"{root}: {len(unnamed)} parquet file(s) named after no split are unused, such as {unnamed[0].name}")
    return groups


def _parquet(name: str, groups: dict[str, list[Path]], root: Path) -> _Source:
    # Read with pyarrow alone: datasets would copy everything into ~/.cache, and takes seconds to import.
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise GoalgenError(f"reading parquet files needs pyarrow: {INSTALL}") from None

    def batches(files: list[Path]) -> Callable[[str], Iterator[Any]]:
        def read(column: str) -> Iterator[Any]:
            for file in files:
                try:
                    with pq.ParquetFile(file) as opened:
                        for batch in opened.iter_batches(batch_size=512, columns=[column]):
                            yield batch.column(0)
                except (pa.ArrowException, OSError, IndexError) as error:
                    raise GoalgenError(f"{file} cannot be read as parquet with a column {column!r}: {error}") from None

        return read

    tables = {}
    for split, files in groups.items():
        rows, schema = [], None
        for file in files:
            try:
                with pq.ParquetFile(file) as opened:
                    rows.append((file.relative_to(root).as_posix(), opened.metadata.num_rows))
                    schema = schema or opened.schema_arrow
            except (pa.ArrowException, OSError) as error:
                raise GoalgenError(f"{file} cannot be read as a parquet file: {error}") from None
        tables[split] = (schema, rows, batches(files), files[0].parent)
    return _tables(name, tables)


def _open_hub(name: str) -> _Source:
    """Read ``name`` from the Hugging Face hub, or from its cache."""
    looks_like_path = (
        name.startswith((".", "~", "/")) or "\\" in name or name.lower().endswith((*EXTENSIONS, ".parquet"))
    )
    if looks_like_path or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise GoalgenError(f"{name} does not exist; --data takes digits, a folder, a parquet file or a hub name")
    try:
        import datasets
    except ImportError:
        raise GoalgenError(f"{name} is no file or folder here; to look for it on the hub: {INSTALL}") from None
    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # datasets, hub and network libraries each have their own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise GoalgenError(
            f"{name} is no file or folder here, and the hub does not give it ({reason}); check name and network"
        ) from None
    return _from_dataset_dict(name, found)


def _from_dataset_dict(name: str, found: Any) -> _Source:
    """Return the splits of a ``datasets.DatasetDict``."""

    def batches(dataset: Any) -> Callable[[str], Iterator[Any]]:
        def read(column: str) -> Iterator[Any]:
            for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=512):
                yield table.column(0)

        return read

    tables = {}
    for key, dataset in found.items():
        split = _SPLIT_NAMES.get(key.lower())
        if split is not None:
            rows = [(f"{name} {key}", len(dataset))]
            tables[split] = (dataset.features.arrow_schema, rows, batches(dataset), Path())
    if "train" not in tables:
        raise GoalgenError(f"{name} has no training split, only {', '.join(found)}")
    return _tables(name, tables)


def _tables(name: str, tables: dict[str, tuple[Any, list[tuple[str, int]], Any, Path]]) -> _Source:
    """Return a source of (schema, rows, batches, folder) a split, once its columns are known."""
    image, label, label_names = _columns(name, tables["train"][0])
    splits: dict[str, _Records] = {}
    for split, (schema, rows, batches, folder) in tables.items():
        labels = None
        if label is not None and label in schema.names:
            labels = [value for batch in batches(label) for value in batch.to_pylist()]
        splits[split] = _Table(image, rows, batches, folder, labels)
    return _Source(name, splits, label_names)


def _columns(name: str, schema: Any) -> tuple[str, str | None, tuple[str, ...] | None]:
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


# 5. Decoding


@dataclass
class _Corrupt:
    """Unreadable images met so far, and what to do about them."""

    policy: str
    errors: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, error: GoalgenError) -> None:
        if self.policy == "refuse":
            raise GoalgenError(f"{error}, or set --corrupt skip") from None
        self.errors[name] = str(error)

    def report(self) -> None:
        if self.errors:
            names = list(self.errors)
            more = ", ..." if len(names) > 5 else ""
            _warn(
                f"skipped {len(names)} unreadable image{'s' if len(names) > 1 else ''}: {', '.join(names[:5])}{more} "
                f"(the first: {self.errors[names[0]]})"
            )


@dataclass
class _Scan:
    """What the headers say: the readable records of each split, and the shape that all images will have."""

    readable: dict[str, Tensor]
    channels: int
    height: int
    width: int


def _decode_splits(source: _Source, config: DataConfig) -> tuple[Splits, bool]:
    """Return the splits, and whether they are all that there was and came from the source's own files."""
    corrupt = _Corrupt(config.corrupt)
    scan = _scan(source, config, corrupt)
    roles = _choose(scan.readable, config, source.name)
    size = sum(len(chosen) for _, chosen in roles.values()) * scan.channels * scan.height * scan.width
    if size > LARGE:
        _warn(f"{source.name}: the decoded images take {size / 2**30:.1f} GiB of memory; --limit or --image-size less")
    labels, label_names = _encode_labels(source)
    sets = {}
    for role, (split, chosen) in roles.items():
        records = source.splits[split]
        images, kept = _decode(records, chosen, scan, config, corrupt)
        if not len(kept):
            raise GoalgenError(f"{source.name}: no image for {role} can be read; {next(iter(corrupt.errors.values()))}")
        of_split = labels[split]
        names = records.names
        sets[role] = ImageSet(
            images,
            256,
            None if of_split is None else of_split[kept],
            None if names is None else tuple(names[i] for i in kept.tolist()),
        )
    corrupt.report()
    own = all(not isinstance(next(iter(r.read()), None), Path) for r in source.splits.values())
    return _finish(sets, config, label_names, source.name), own and not corrupt.errors


def _scan(source: _Source, config: DataConfig, corrupt: _Corrupt) -> _Scan:
    readable, first, grey = {}, None, True
    for split, records in source.splits.items():
        valid = []
        for index, item in enumerate(records.read()):
            try:
                info = inspect_image(_present(item, records, index), records.describe(index))
            except GoalgenError as error:
                corrupt.add(records.describe(index), error)
                continue
            valid.append(index)
            grey = grey and info.grey
            first = first or (info, records.describe(index))
            if config.image_size is None:
                _check_same_size(first, (info, records.describe(index)))
        readable[split] = torch.tensor(valid, dtype=torch.int64)
    if first is None:
        if not corrupt.errors:
            raise GoalgenError(f"{source.name} holds no images")
        reason = next(iter(corrupt.errors.values()))
        raise GoalgenError(f"{source.name}: none of the {len(corrupt.errors)} images can be read; the first: {reason}")
    height, width = config.image_size or (first[0].height, first[0].width)
    return _Scan(readable, config.channels or (1 if grey else 3), height, width)


def _present(item: Path | bytes | None, records: _Records, index: int) -> Path | bytes:
    if item is None:
        raise GoalgenError(f"{records.describe(index)} has no image; remove it")
    return item


def _check_same_size(first: tuple[ImageInfo, str], other: tuple[ImageInfo, str]) -> None:
    (a, a_name), (b, b_name) = first, other
    if (a.height, a.width) != (b.height, b.width):
        raise GoalgenError(
            f"images differ in size (height x width): {a_name} is {a.height}x{a.width}, {b_name} is "
            f"{b.height}x{b.width}; set --image-size H W"
        )


def _decode(
    records: _Records, chosen: Tensor, scan: _Scan, config: DataConfig, corrupt: _Corrupt
) -> tuple[Tensor, Tensor]:
    """Return the images (n, C, height, width) of the records ``chosen`` (ascending) that decode, and which they are."""
    shape = (len(chosen), scan.channels, scan.height, scan.width)
    try:
        images = torch.empty(shape, dtype=torch.uint8)
    except RuntimeError:  # what torch raises when memory is out
        need = chosen.numel() * scan.channels * scan.height * scan.width / 2**30
        raise GoalgenError(f"no memory for {need:.1f} GiB of images; set --limit or a smaller --image-size") from None
    wanted = set(chosen.tolist())
    kept: list[int] = []
    for index, item in enumerate(records.read()):
        if index not in wanted:
            continue
        try:
            images[len(kept)] = decode_image(
                _present(item, records, index),
                channels=scan.channels,
                image_size=(scan.height, scan.width),
                fit=config.fit,
                background=config.background,
                name=records.describe(index),
            )
        except GoalgenError as error:
            corrupt.add(records.describe(index), error)
            continue
        kept.append(index)
    return images[: len(kept)], torch.tensor(kept, dtype=torch.int64)


def _encode_labels(source: _Source) -> tuple[dict[str, Tensor | None], tuple[str, ...] | None]:
    """Return the labels of every split as int64, and their names; a split that misses one has none at all."""
    names = source.label_names
    values = {split: records.labels for split, records in source.splits.items()}
    words = {v for column in values.values() for v in column or () if isinstance(v, str)}
    if words:
        names = tuple(sorted(words))
    code = {word: i for i, word in enumerate(names or ())} if words else None
    encoded: dict[str, Tensor | None] = {}
    for split, column in values.items():
        numbers = [code.get(v) for v in column] if code and column is not None else column
        # Hugging Face writes -1 for the labels that a test split keeps to itself.
        if numbers is None or not all(isinstance(v, int) and v >= 0 for v in numbers):
            encoded[split] = None
        else:
            encoded[split] = torch.tensor(numbers, dtype=torch.int64)
    return encoded, names if any(column is not None for column in encoded.values()) else None


# 6. Splits


def _choose(readable: dict[str, Tensor], config: DataConfig, name: str) -> dict[str, tuple[str, Tensor]]:
    """Return, for train, validation and test, the split of the source and which of its records to take (ascending)."""
    train = readable["train"]
    roles: dict[str, tuple[str, Tensor]] = {}
    # Test first: it must stay the same when the share of the validation set is changed.
    for role, fraction, most in (
        ("test", config.test_fraction, None),
        ("validation", config.validation_fraction, 2000),
    ):
        if role in readable:
            roles[role] = (role, readable[role])
        else:
            needed = 2 if role == "test" and "validation" not in readable else 1  # images that must remain
            train, held = _hold_out(train, fraction, most, needed, role, name)
            roles[role] = ("train", held)
        if not len(roles[role][1]):
            raise GoalgenError(f"{name} has a {role} split without a readable image; mend it or remove it")
    if not len(train):
        raise GoalgenError(f"{name} has a train split without a readable image; mend it")
    if config.limit is not None:
        order = torch.randperm(len(train), generator=rng.generator(0, "split limit"))
        train = train[order[: config.limit].sort().values]
    return {"train": ("train", train), **roles}


def _hold_out(
    indices: Tensor, fraction: float, most: int | None, needed: int, role: str, name: str
) -> tuple[Tensor, Tensor]:
    """Return what remains (at least ``needed``) and what is held out (at least 1, at most ``most``), ascending."""
    count = len(indices)
    if count <= needed:
        raise GoalgenError(f"{name} has too few images to hold some out for {role}; add images (3 at the least)")
    held = min(max(1, round(count * fraction)), count - needed)
    if most is not None:
        held = min(held, most)
    # Seed 0, not the run's: every run must be measured on the same images.
    order = torch.randperm(count, generator=rng.generator(0, f"split {role}"))
    return indices[order[held:].sort().values], indices[order[:held].sort().values]


def _finish(sets: dict[str, ImageSet], config: DataConfig, label_names: tuple[str, ...] | None, name: str) -> Splits:
    if config.binarize:
        if sets["train"].shape[0] != 1:
            raise GoalgenError("--binarize needs grey images, and these are RGB; set --channels 1 as well")
        for role in ("validation", "test"):
            grey = sets[role]
            drawn = binarize_images(grey.images, grey.levels, rng.generator(0, f"binarize {role}"))
            sets[role] = ImageSet(drawn, 2, grey.labels, grey.names)
    return Splits(sets["train"], sets["validation"], sets["test"], label_names, name, config.binarize)


def _digits(config: DataConfig) -> Splits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8)[:, None]  # (1797, 1, 8, 8), levels 0..16
    levels = 17
    if config.image_size not in (None, (8, 8)):
        # Resizing makes levels between the 17.
        pictures = to_bytes(images, levels)[:, 0].numpy()
        size, fit, colour = config.image_size, config.fit, config.background
        images = torch.stack(
            [decode_image(Image.fromarray(p), image_size=size, fit=fit, background=colour) for p in pictures]
        )
        levels = 256
    if config.channels == 3:
        images = images.expand(-1, 3, -1, -1).contiguous()
    whole = ImageSet(images, levels, torch.from_numpy(digits.target).to(torch.int64))
    roles = _choose({"train": torch.arange(len(whole))}, config, "digits")
    sets = {role: whole.subset(chosen) for role, (_, chosen) in roles.items()}
    return _finish(sets, config, tuple(str(n) for n in digits.target_names), "digits")


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)

"""From a name or a path to three sets of images: the digits, folders, parquet files, the Hugging Face hub.

Every source is first a list of *records*, files not yet decoded, per split. The headers are read to find
the common shape and the unreadable files; the splits are chosen; only then are the chosen images decoded,
into one tensor allocated beforehand, or into a file that is mapped into memory where they are too many for it.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from goalgen import rng
from goalgen.config import DataConfig
from goalgen.data import hubs, tables
from goalgen.data.decoding import Found, Roles, decode_into
from goalgen.data.files import list_files, say_unread, skipped
from goalgen.data.images import EXTENSIONS, decode_image, inspect_image, parse_colour
from goalgen.data.labels import encode_labels
from goalgen.data.levels import binarize_images, to_bytes
from goalgen.data.mapped import Kept, Mapped, belongs_on_disk
from goalgen.data.provenance import say_repeated
from goalgen.data.records import Records, Source, open_folder
from goalgen.data.sets import ImageSet, Splits, choose
from goalgen.errors import GoalgenError
from goalgen.nearby import is_hub_name, looked
from goalgen.storage import one_line

LARGE = 4 * 2**30
"""Bytes of decoded images from which a warning states the size before memory is taken."""
_Shape = tuple[int, int, int]


@one_line()
def load_data(config: DataConfig) -> Splits:
    """Read the goals that ``config`` describes.

    All random choices (held-out images, --limit, binarised test images) are fixed: they depend neither on
    a run's seed nor on the machine, so that runs can be compared.

    Warns:
        UserWarning: unreadable images were skipped, other files were left unread, test images are among the others, or the
            decoded images exceed ``LARGE`` bytes.

    Raises:
        GoalgenError: the source does not exist, cannot be read, has too few images or images of several
            sizes, or a setting has no meaning.
    """
    _check(config)
    data = _load(config)
    say_repeated(data)
    return data


def _load(config: DataConfig) -> Splits:
    if config.data == "digits":
        return _digits(config)
    if config.data.startswith("memory:"):
        raise GoalgenError(
            "the run was given its images in Python, and they are not kept with it: give them again, or --data with the images as files"
        )
    path = Path(config.data).expanduser()
    if not path.exists():
        return _load_hub(config)
    file = None if config.data_cache == "memory" else Mapped.of_path(path, config)
    if file is not None and (kept := file.load()) is not None:
        return finish(kept.sets, config, kept.label_names, kept.name)
    key = tables.decoded_key(path, config) if config.data_cache != "disk" else None
    if key is not None and (found := tables.load_decoded(key, config)) is not None:
        return found
    with _heard() as said:
        source = _open_path(path)
    return _read(source, config, file, key, said)


def _load_hub(config: DataConfig) -> Splits:
    if not is_hub_name(config.data):
        raise GoalgenError(
            f"{config.data} does not exist {looked(config.data, ['digits'])}; --data takes digits, a folder, a parquet file or a hub name owner/name"
        )
    if config.data_cache == "memory":
        return _read(hubs.open_hub(config.data), config, None, None, [])
    file = Mapped.of_hub(config)
    if file.is_made():
        file.revision = hubs.hub_revision(config.data)
        if (kept := file.load()) is not None:
            return finish(kept.sets, config, kept.label_names, kept.name)
    source = hubs.open_hub(config.data, streams=True)
    file.revision = hubs.hub_revision(config.data)
    return _read(source, config, file, None, [])


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What is warned of inside the block; it is said when the block is left."""
    words: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            yield words
    finally:
        for remark in said:
            words.append(str(remark.message))
            warnings.warn(remark.message, stacklevel=4)


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


def _open_path(path: Path) -> Source:
    if path.is_file():
        if path.suffix.lower() == ".parquet":
            return tables.open_parquet(path.stem, {"train": [path]}, path.parent)
        if path.suffix.lower() in EXTENSIONS:
            raise GoalgenError(f"{path} is a single image; give a folder of images")
    if not path.is_dir():
        raise GoalgenError(f"{path} is neither a folder of images nor a .parquet file")
    name = path.resolve().name or str(path)
    found = list_files(path)
    files = [p for p in found.files if tables.is_table(p)]
    if not files:
        return open_folder(name, path)
    source = tables.open_parquet(name, tables.parquet_splits(files, path), path)
    if not source.holds_paths():
        say_unread(path, found, files)
    return source


def _read(source: Source, config: DataConfig, file: Mapped | None, key: str | None, said: list[str]) -> Splits:
    """Decode the chosen images of a source into memory, or into ``file`` if they are too many for it.

    Args:
        key: by which what fits into memory is kept, too.
        said: what was warned of when the source was opened.
    """
    corrupt: dict[str, str] = {}  # unreadable images met so far, and why they cannot be read
    readable, shape = _scan(source, config, corrupt)
    count = sum(len(chosen) for _, chosen in choose(readable, config, source.name).values())
    size = count * math.prod(shape)
    decode = partial(
        decode_image, channels=shape[0], image_size=shape[1:], fit=config.fit, background=config.background
    )
    if file is None or not (source.streams or belongs_on_disk(size, config.data_cache)):
        if size > LARGE:
            need = f"the decoded images take {size / 2**30:.1f} GiB of memory"
            warnings.warn(f"{source.name}: {need}; --limit or --image-size less", stacklevel=2)
        into_memory = partial(_into_memory, source, shape, decode, config, corrupt)
        sets, names = _decode_sets(source, readable, config, into_memory, corrupt)
        splits = finish(sets, config, names, source.name)
        whole = not source.holds_paths() and not corrupt
        if key is not None and whole and not said:  # what is said once is said again
            tables.store_decoded(key, splits)
        return splits
    with file.locked():
        if (kept := file.load()) is None:  # no other process has made it meanwhile
            note = partial(_note, corrupt, config=config)
            into_file = partial(decode_into, file, source, shape=shape, decode=decode, note=note)
            with _heard() as more:
                sets, names = _decode_sets(source, readable, config, into_file, corrupt)
            file.keep(sets, names, source.name, said + more)
            kept = Kept(sets, names, source.name)
    return finish(kept.sets, config, kept.label_names, kept.name)


def _decode_sets(
    source: Source,
    readable: dict[str, Tensor],
    config: DataConfig,
    decode: Callable[[Roles], Found],
    corrupt: dict[str, str],
) -> tuple[dict[str, ImageSet], tuple[str, ...] | None]:
    """Return the sets that ``decode`` makes, and the names of their classes."""
    found = _decode_roles(source, readable, config, decode)
    columns = {split: records.labels for split, records in source.splits.items()}
    labels, label_names = encode_labels(columns, source.label_names, source.name)
    sets = {}
    for role, (split, images, kept, digests) in found.items():
        of_split, of_files = labels[split], source.splits[split].names
        names = None if of_files is None else tuple(of_files[i] for i in kept.tolist())
        sets[role] = ImageSet(images, 256, None if of_split is None else of_split[kept], names, digests)
    if corrupt:
        warnings.warn(skipped(corrupt), stacklevel=2)
    return sets, label_names


def _note(corrupt: dict[str, str], name: str, error: GoalgenError, config: DataConfig) -> None:
    if config.corrupt == "refuse":
        raise GoalgenError(f"{error}, or set --corrupt skip") from None
    corrupt[name] = str(error)


def _scan(source: Source, config: DataConfig, corrupt: dict[str, str]) -> tuple[dict[str, Tensor], _Shape]:
    """Return, by the headers, the readable records of each split and the shape that all images will have.

    Of a stream, which is read once, all records count as readable, and the first image has the shape of all.
    """
    if source.streams:
        name, item = next(iter(source.splits["train"].read()))
        height, width, grey = inspect_image(item or b"", name)
        if config.image_size is None or config.channels is None:
            told = f"--image-size {height} {width} --channels {1 if grey else 3}"
            raise GoalgenError(
                f"{source.name} is read once, as it comes from the hub, so say what all images are to be; the first would be {told}"
            )
        every = {split: torch.arange(records.count or 0) for split, records in source.splits.items()}
        return every, (config.channels, *config.image_size)
    readable, all_grey = {}, True
    sizes: dict[tuple[int, int], str] = {}  # and the first image of each
    for split, records in source.splits.items():
        valid = []
        for index, (name, item) in enumerate(records.read()):
            try:
                if item is None:
                    raise GoalgenError(f"{name} has no image; remove it")
                height, width, grey = inspect_image(item, name)
            except GoalgenError as error:
                _note(corrupt, name, error, config)
                continue
            valid.append(index)
            all_grey = all_grey and grey
            sizes.setdefault((height, width), name)
        readable[split] = torch.tensor(valid, dtype=torch.int64)
    if not sizes and not corrupt:
        raise GoalgenError(f"{source.name} holds no images")
    if not sizes:
        reason = next(iter(corrupt.values()))
        raise GoalgenError(f"{source.name}: none of the {len(corrupt)} images can be read; the first: {reason}")
    if config.image_size is None and len(sizes) > 1:
        first, other = [f"{name} is {height}x{width}" for (height, width), name in sizes.items()][:2]
        raise GoalgenError(f"images differ in size (height x width): {first}, {other}; set --image-size H W")
    height, width = config.image_size or next(iter(sizes))
    return readable, (config.channels or (1 if all_grey else 3), height, width)


def _decode_roles(
    source: Source, readable: dict[str, Tensor], config: DataConfig, decode: Callable[[Roles], Found]
) -> Found:
    """Return, for train, validation and test, the split of the source, its images, which of its records they are, and digests.

    Where all that was held out for one turns out to be unreadable, others are held out.
    """
    while True:
        roles = choose(readable, config, source.name)
        found = decode(roles)
        if all(len(kept) for _, _, kept, _ in found.values()):
            return found
        for role, (split, chosen) in roles.items():
            broken = chosen[~torch.isin(chosen, found[role][2])]
            readable[split] = readable[split][~torch.isin(readable[split], broken)]


def _into_memory(
    source: Source,
    shape: _Shape,
    decode: Callable[..., Tensor],
    config: DataConfig,
    corrupt: dict[str, str],
    roles: Roles,
) -> Found:
    found: Found = {}
    for role, (split, chosen) in roles.items():
        images, kept = _decode(source.splits[split], chosen, shape, decode, config, corrupt)
        found[role] = split, images, kept, None
    return found


def _decode(
    records: Records,
    chosen: Tensor,
    shape: _Shape,
    decode: Callable[..., Tensor],
    config: DataConfig,
    corrupt: dict[str, str],
) -> tuple[Tensor, Tensor]:
    """Return the images (n, C, height, width) of the records ``chosen`` (ascending) that decode, and which they are."""
    try:
        images = torch.empty((len(chosen), *shape), dtype=torch.uint8)
    except RuntimeError:  # what torch raises when memory is out
        need = len(chosen) * math.prod(shape) / 2**30
        raise GoalgenError(f"no memory for {need:.1f} GiB of images; set --data-cache disk, or --limit") from None
    wanted = set(chosen.tolist())
    kept: list[int] = []
    for index, (name, item) in enumerate(records.read()):
        if index not in wanted or item is None:
            continue
        try:
            images[len(kept)] = decode(item, name=name)
        except GoalgenError as error:
            _note(corrupt, name, error, config)
            continue
        kept.append(index)
    return images[: len(kept)], torch.tensor(kept, dtype=torch.int64)


def finish(sets: dict[str, ImageSet], config: DataConfig, label_names: tuple[str, ...] | None, name: str) -> Splits:
    """The three sets, black and white if they are to be; digests are those of the images before."""
    sets = {role: dataclasses.replace(part, digests=part.digest()) for role, part in sets.items()}
    if config.binarize:
        if sets["train"].shape[0] != 1:
            raise GoalgenError("--binarize needs grey images, and these are RGB; set --channels 1 as well")
        for role in ("validation", "test"):
            grey = sets[role]
            drawn = binarize_images(grey.images, grey.levels, rng.generator(0, f"binarize {role}"))
            sets[role] = ImageSet(drawn, 2, grey.labels, grey.names, grey.digests)
    return Splits(sets["train"], sets["validation"], sets["test"], label_names, name, config.binarize)


def _digits(config: DataConfig) -> Splits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8)[:, None]  # (1797, 1, 8, 8), levels 0..16
    levels = 17
    if config.image_size not in (None, (8, 8)):
        decode = partial(decode_image, image_size=config.image_size, fit=config.fit, background=config.background)
        pictures = map(Image.fromarray, to_bytes(images, levels)[:, 0].numpy())
        images, levels = torch.stack([decode(p) for p in pictures]), 256  # there are levels between the 17
    if config.channels == 3:
        images = images.expand(-1, 3, -1, -1).contiguous()
    whole = ImageSet(images, levels, torch.from_numpy(digits.target).to(torch.int64))
    roles = choose({"train": torch.arange(len(whole))}, config, "digits")
    sets = {role: whole.subset(chosen) for role, (_, chosen) in roles.items()}
    return finish(sets, config, tuple(str(n) for n in digits.target_names), "digits")

"""Data sets of the Hugging Face hub: downloaded, or, where the disk has no room for that, decoded as they stream."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from goalgen.data.records import SPLIT_NAMES, Item, Records, Source
from goalgen.data.tables import INSTALL, Table, columns_of, open_tables
from goalgen.errors import GoalgenError
from goalgen.nearby import looked


def hub_revision(name: str) -> str | None:
    """What changes when the data set called ``name`` does; None where the hub cannot be asked."""
    try:
        import datasets

        return str(datasets.load_dataset_builder(name).hash or "") or None
    except Exception:  # datasets, hub and network libraries each have their own; open_hub has the words for them
        return None


def open_hub(name: str, *, streams: bool = False) -> Source:
    """Return the source called ``name`` on the Hugging Face hub, or in its cache.

    Args:
        streams: where the disk has no room for what would be downloaded, let the images come by a stream.

    Raises:
        GoalgenError: there is none, it has no training split, or the package to read it is missing.
    """
    try:
        import datasets
    except ImportError:
        raise GoalgenError(f"{name} is no file or folder here {looked(name)}; for the hub: {INSTALL}") from None
    try:
        if streams and (counts := too_large_to_store(name)) is not None:
            return open_stream(name, datasets.load_dataset(name, streaming=True), counts)
        found = datasets.load_dataset(name)
    except GoalgenError:
        raise
    except Exception as error:  # datasets, hub and network libraries each have their own
        raise GoalgenError(
            f"{name} is no file or folder here, and the hub does not give it ({_reason(error)}); check name and network {looked(name)}"
        ) from None
    return open_data_sets(name, found)


def too_large_to_store(name: str) -> dict[str, int] | None:
    """Of a data set for which the disk has no room, how many images each split has; None if it has, or that is not known."""
    import datasets

    builder = datasets.load_dataset_builder(name)
    info, place = builder.info, Path(builder.cache_dir)
    if place.exists():  # it is downloaded already
        return None
    need = (info.download_size or 0) + (info.dataset_size or 0)
    free = shutil.disk_usage(next(p for p in place.absolute().parents if p.exists())).free
    return {key: split.num_examples for key, split in (info.splits or {}).items()} if need > free else None


def open_data_sets(name: str, found: Any) -> Source:
    """Return the source of a ``datasets.DatasetDict``."""

    def read(key: str, column: str) -> Iterator[tuple[str, Any]]:
        row = itertools.count()
        for table in found[key].select_columns([column]).with_format("arrow").iter(batch_size=512):
            for value in table.column(0).to_pylist():
                yield f"{name} {key} row {next(row)}", value

    keys = _keys(name, found)
    schemas = {split: found[key].features.arrow_schema for split, key in keys.items()}
    return open_tables(name, {s: Table(schemas[s], partial(read, key), Path()) for s, key in keys.items()})


def open_stream(name: str, found: Any, counts: dict[str, int]) -> Source:
    """Return the source of a ``datasets.IterableDatasetDict``, which is read once: images and labels at the same time.

    Args:
        counts: how many images each of its splits has.
    """
    keys = _keys(name, found)
    features = {split: found[key].features or found[key]._resolve_features().features for split, key in keys.items()}
    image, label, label_names = columns_of(name, features["train"].arrow_schema)
    splits = {}
    for split, key in keys.items():
        told = label if label in features[split] else None
        columns = [image] + ([] if told is None else [told])
        labels: list[Any] | None = None if told is None else []
        table = found[key].select_columns(columns).with_format("arrow")
        splits[split] = Records(partial(_stream, name, key, table, columns, labels), labels, count=counts[key])
    return Source(name, splits, label_names)


def _stream(name: str, key: str, found: Any, columns: list[str], labels: list[Any] | None) -> Iterator[Item]:
    """The images of a stream; their labels are put into ``labels`` as they come."""
    if labels is not None:
        labels.clear()
    row = itertools.count()
    try:
        for table in found.iter(batch_size=128):
            if labels is not None:
                labels += table.column(columns[1]).to_pylist()
            for value in table.column(columns[0]).to_pylist():
                yield f"{name} {key} row {next(row)}", value["bytes"] if isinstance(value, dict) else value
    except GoalgenError:
        raise
    except Exception as error:  # datasets, hub and network libraries each have their own
        raise GoalgenError(
            f"the stream of {name} broke off at row {next(row):,} of {key} ({_reason(error)}); the same command goes on"
        ) from None


def _keys(name: str, found: Any) -> dict[str, str]:
    keys = {SPLIT_NAMES[key.lower()]: key for key in found if key.lower() in SPLIT_NAMES}
    if "train" not in keys:
        raise GoalgenError(f"{name} has no training split, only {', '.join(found)}")
    return keys


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

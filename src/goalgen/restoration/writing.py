"""Restorations as files: under the names of the damaged ones, beside the truth, and on a contact sheet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from goalgen.data.images import decode_image
from goalgen.data.labels import Labels, listed
from goalgen.metrics.fidelity import Fidelity, fidelity
from goalgen.outputs import OutputFolder
from goalgen.pictures import save_png, tile
from goalgen.restoration.drawing import Drawing, Moments, Restoration, Restorer, moments
from goalgen.restoration.masks import Mask, Size, in_words
from goalgen.restoration.names import SHEET, Item, Truths
from goalgen.restoration.reading import Damaged
from goalgen.telling import Telling

SHEET_ROWS, SHEET_DRAWS, SHEET_SIDE = 32, 4, 128
"""Of the contact sheet: files and draws, the first ones, and pixels a side at most."""


@dataclass
class Written:
    """What :func:`write_restorations` did."""

    items: list[Item]
    notes: list[str]
    """of each item what was done to it, "" if nothing"""
    about: dict[str, Any]
    """the record"""
    untrue: list[str] = field(default_factory=list)
    """names of the files without a truth, where truths were given"""


def write_restorations(
    restorer: Restorer,
    items: Sequence[Item],
    mask: Mask | None,
    place: OutputFolder,
    how: Drawing,
    labels: Labels | None,
    truths: Truths | None,
    facts: dict[str, Any],
) -> Written:
    """Restore files and write what :meth:`Item.names` lists, and a contact sheet; one file's pictures are held at a time.

    Args:
        facts: for restore.json.

    Raises:
        GoalgenError: a file or mask cannot be read, or does not fit the model; nothing is written then. Or a file cannot be
            written.
    """
    paths = [item.path for item in items]
    masks = restorer.masks(paths, [str(path) for path in paths], mask)
    true = {} if truths is None else truths.matched(items)

    def read() -> Iterator[Any]:
        for path, one in zip(paths, masks, strict=True):
            yield restorer.reading.read(path, str(path), one)

    # Whatever cannot be read is known before anything is written.
    notes = [_noted(damaged, true.get(item.name)) for item, damaged in zip(items, read(), strict=True)]
    sizes = [restorer.reading.size(path, str(path), None) for path in paths[:SHEET_ROWS]]
    names = [name for item in items for name in item.names(how.num, item.name in true)] + [SHEET]
    untrue = [item.path.name for item in items if truths is not None and item.name not in true]
    about = {**facts, "num": how.num, "seed": how.seed, "temperature": how.temperature, "steps": how.steps}
    records: list[dict[str, Any]] = []
    about["restored"] = records
    sheet = _Sheet(sizes, truths is not None)
    drawn = restorer.draw(read(), len(items), how, labels)
    with place.filling(names, about) as folder, Telling(len(items), title="restored") as work:
        for item, restoration in zip(items, drawn, strict=True):
            one = _File(item, restoration, true.get(item.name), folder)
            record = {**one.write(), "note": notes[len(records)]}
            if len(records) < SHEET_ROWS:
                sheet.add(one)
            records.append(record)
            work.at(len(records))
        if truths is not None:
            about |= {**_averages(records), "without_truth": untrue}
        save_png(sheet.picture(), folder / SHEET)
    return Written(list(items), notes, about, untrue)


def _noted(damaged: Damaged, truth: Path | None) -> str:
    """What is done to an image, and to its truth, in words."""
    found = [damaged.note] if damaged.note else []
    if truth is not None:
        size = tuple(decode_image(truth).shape[1:])
        found += [f"truth of {in_words(size)} resized to {in_words(damaged.size)}"] if size != damaged.size else []
    return ", ".join(found)


def _averages(records: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Of each number that the records of files have, the mean over those that have it."""
    found: dict[str, float | None] = {}
    for key in dict.fromkeys(key for record in records for key in record if key.startswith(("psnr", "ssim"))):
        values = [record[key] for record in records if record.get(key) is not None]
        found[key] = sum(values) / len(values) if values else None
    return found


class _File:
    """One restored file, while it is written."""

    def __init__(self, item: Item, restoration: Restoration, truth: Path | None, folder: Path) -> None:
        self.item, self.restoration, self.folder = item, restoration, folder
        self.original = restoration.damaged.original()
        self.path = truth
        self.first: list[np.ndarray] = []
        self.mean: np.ndarray | None = None
        self.damaged = restoration.damaged.picture(self.original)
        self.truth: np.ndarray | None = None
        self.found: list[Fidelity] = []

    def write(self) -> dict[str, Any]:
        """Write its pictures; return its record."""
        names = iter(self.item.names(len(self.restoration.small), self.path is not None))
        found = moments(self._draws(names))
        record: dict[str, Any] = {
            "file": str(self.item.path), "written": f"{self.item.name}.png",
            "size": list(self.restoration.damaged.size),
        }  # fmt: skip
        if len(self.restoration.small) > 1:
            self.mean = np.rint(found.mean).astype(np.uint8)
            self._save(self._stored(self.mean), next(names))
            self._save(spread_picture(found), next(names))
        if self.truth is not None:
            record |= self._measured()
            self._save(self.truth, next(names))
        return record

    def _draws(self, names: Iterator[str]) -> Iterator[np.ndarray]:
        """The draws; each is written, and measured against the truth."""
        for draw in self.restoration.draws(self.original):
            if self.path is not None:
                if self.truth is None:
                    self.truth = fitted(self._decoded(self.path, draw.shape[2]), draw.shape)
                self.found.append(fidelity(_tensor(draw), _tensor(self.truth)))
            self._save(self._stored(draw), next(names))
            if len(self.first) < SHEET_DRAWS:
                self.first.append(draw)
            yield draw

    def _decoded(self, path: Path, channels: int) -> np.ndarray:
        background = self.restoration.damaged.reading.background
        return decode_image(path, channels=channels, background=background).permute(1, 2, 0).numpy()

    def _stored(self, picture: np.ndarray) -> np.ndarray:
        return picture if self.original is None else self.original.filled_as_stored(picture)

    def _save(self, picture: np.ndarray, name: str) -> None:
        save_png(as_picture(picture), self.folder / name)

    def _measured(self) -> dict[str, Any]:
        """Of the draws, the mean of their PSNR and SSIM; and those of their mean, and of the damaged image."""
        assert self.truth is not None
        numbers: dict[str, Any] = {"truth": str(self.path)}
        for name in Fidelity._fields:
            values = [value for each in self.found if (value := getattr(each, name)) is not None]
            numbers[name] = sum(values) / len(values) if values else None
        others = {"damaged": fitted(self.damaged, self.truth.shape)} | (
            {} if self.mean is None else {"of_mean": self.mean}
        )
        for what, picture in others.items():
            near = fidelity(_tensor(picture), _tensor(self.truth))
            numbers |= {f"{name}_{what}": value for name, value in near._asdict().items()}
        return numbers


def spread_picture(found: Moments) -> np.ndarray:
    """The spread of draws as a picture: black where they are all alike, white where half of them are black and half white."""
    return np.rint(2 * found.spread).astype(np.uint8)


def as_picture(pixels: np.ndarray) -> Image.Image:
    """Pixels (height, width, C), C 1 to 4, as a PIL image."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def fitted(picture: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A picture (height, width, 1 or 3) uint8 as one of another shape: resized, and grey or in colour."""
    image, (height, width, channels) = as_picture(picture), shape
    if (image.height, image.width) != (height, width):
        method = Image.Resampling.NEAREST if height * width > image.height * image.width else Image.Resampling.LANCZOS
        image = image.resize((width, height), method)
    return np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(height, width, channels)


class _Sheet:
    """The contact sheet: of each file a row, damaged, draws, mean, truth."""

    def __init__(self, sizes: Sequence[Size], true: bool) -> None:
        """
        Args:
            sizes: of the pictures that will be shown.
            true: whether there is a column for the truth.
        """
        alike = len(set(sizes)) == 1 and max(sizes[0]) <= SHEET_SIDE
        self.size = sizes[0] if alike else (SHEET_SIDE, SHEET_SIDE)
        self.true, self.cells, self.columns = true, list[Tensor](), 0

    def add(self, one: _File) -> None:
        """Add the row of a file."""
        row: list[np.ndarray | None] = [one.damaged, *one.first]
        row += [] if one.mean is None else [one.mean]
        row += [one.truth] if self.true else []
        self.columns = len(row)
        self.cells += [self._cell(picture) for picture in row]

    def _cell(self, picture: np.ndarray | None) -> Tensor:
        """A picture in the middle of a cell, as large as its sides allow; none is a grey cell."""
        height, width = self.size
        cell = Image.new("RGB", (width, height), (128, 128, 128))
        if picture is not None:
            scale = min(height / picture.shape[0], width / picture.shape[1])
            rows, columns = (max(1, round(side * scale)) for side in picture.shape[:2])
            inside = as_picture(fitted(picture, (rows, columns, 3)))
            cell.paste(inside, ((width - columns) // 2, (height - rows) // 2))
        return _tensor(np.asarray(cell))

    def picture(self) -> Image.Image:
        """The whole sheet."""
        return tile(torch.stack(self.cells), self.columns)


def told(written: Written, out: Path, most: int = 8) -> Iterator[str]:
    """Lines about what was written: what was resized, where all is, and how near it is to the truth."""
    noted = [(item, note) for item, note in zip(written.items, written.notes, strict=True) if note]
    yield from (f"{item.path}: {note}" for item, note in noted[:most])
    if len(noted) > most:
        yield f"... and {len(noted) - most:,} more, see {out / 'restore.json'}"
    about, count = written.about, len(written.items)
    draws = f", {about['num']} draws of each with their mean and spread" if about["num"] > 1 else ""
    yield f"{count} file{'s' if count > 1 else ''} restored in {out}{draws}; contact sheet: {out / SHEET}"
    if "psnr" in about:
        words = [f"{name}: {_decibels(about, end)}" for name, end in (("restored", ""), ("mean of draws", "_of_mean"), ("damaged", "_damaged")) if f"psnr{end}" in about]  # fmt: skip
        yield f"of {count - len(written.untrue)} with a truth: {'; '.join(words)}"
    if written.untrue:
        yield f"no truth for {len(written.untrue)}: {listed(written.untrue)}"


def _decibels(about: dict[str, Any], end: str) -> str:
    psnr, ssim = about[f"psnr{end}"], about[f"ssim{end}"]
    return f"PSNR {'infinite' if psnr is None else f'{psnr:.2f} dB'}" + ("" if ssim is None else f", SSIM {ssim:.3f}")
